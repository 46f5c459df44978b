from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from oneround.runs.callbacks import Observer
from oneround.runs.loop import Loop
from oneround.runs.stage import Stage
from tests.tiny import Watching, interrupted

STEP = 2 * 4 * 6 * 5
"""FLOPs of one step below."""


def work(loop: Loop, model: nn.Linear) -> None:
    with loop.meter.step("work"), torch.no_grad():
        model(torch.ones(4, 6))
    with torch.no_grad():
        model.weight += 1


def test_steps_are_counted_and_told() -> None:
    told = []
    stage = Stage("distillation", callbacks=[Watching(lambda *event: told.append(event))])
    loop, model = Loop(stage, 3), nn.Linear(6, 5)
    for step in loop:
        work(loop, model)
        loop.note = f"step {step}"
    assert told == [("distillation", n, 3, f"step {n}") for n in (1, 2, 3)]
    assert stage.cost.flops == 3 * STEP
    assert stage.cost.seconds > 0


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_goes_on_from_the_last_checkpoint(tmp_path: Path, stop: int) -> None:
    models = [nn.Linear(6, 5) for _ in range(2)]
    for model in models:
        nn.init.zeros_(model.weight)
    stage = Stage("distillation", folder=tmp_path)
    with interrupted(stage, stop):
        loop = Loop(stage, 5, {"model": models[0]}, keep_every=2)
        for step in loop:
            work(loop, models[0])
            stage.curve.append({"step": step})
    again = Stage("distillation", folder=tmp_path)
    loop = Loop(again, 5, {"model": models[1]}, keep_every=2)
    assert loop.done == stop // 2 * 2
    for step in loop:
        work(loop, models[1])
        again.curve.append({"step": step})
    assert models[1].weight.eq(5).all()
    assert again.cost.flops == 5 * STEP
    assert [entry["step"] for entry in again.curve] == [1, 2, 3, 4, 5]
    assert list(Loop(again, 5, {"model": models[1]})) == [], "nothing is left to do"


def test_stops_when_the_flops_are_spent() -> None:
    stage = Stage("distillation", flops=2.5 * STEP)
    loop, places, model = Loop(stage, 100), [], nn.Linear(6, 5)
    for _ in loop:
        places.append(loop.position)
        work(loop, model)
    assert loop.done == 3, "the step in which they are spent is the last"
    assert places == pytest.approx([0, 40, 80]), "position runs to the end all the same"
    assert loop.over
    assert loop.position == 100


def test_position_within_a_long_step() -> None:
    loop = Loop(Stage("distillation"), 4)
    for step in loop:
        loop.within = 0.25
        assert loop.position == step - 0.75
    assert loop.position == 4


def test_an_observer_looks_at_costs_that_double(tmp_path: Path) -> None:
    def look(model: nn.Module) -> dict[str, float]:
        model(torch.ones(9, 6))  # costs nothing
        return {"accuracy": 0.5}

    def run(stage: Stage) -> Loop:
        loop, model = Loop(stage, 20), nn.Linear(6, 5)
        for _ in loop:
            work(loop, model)
            loop.observe(model)
        return loop

    def stage() -> Stage:
        return Stage("distillation", folder=tmp_path, callbacks=(Observer(look, first=2 * STEP),))

    first = stage()
    with interrupted(first, 5):
        run(first)
    second = stage()
    assert run(second).meter.flops == 20 * STEP
    looked = [entry["flops"] / STEP for entry in second.observed]
    assert looked == [2, 4, 8, 16], "also when it goes on after an interruption"
    assert all(entry["accuracy"] == 0.5 for entry in second.observed)
