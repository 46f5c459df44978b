"""What every method with a student and made-up images must do, with tiny budgets."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from oneround import methods
from oneround.distillation.student import Learner
from oneround.model_file import Model
from oneround.models.ensemble import Client, Ensemble
from oneround.models.registry import build
from oneround.runs import stage
from oneround.runs.cost import Meter
from oneround.runs.run import Run
from oneround.study import ArchitectureSpec
from tests.tiny import DENSENET, IMAGE, RESNET, TASK, Interrupted, equal, network

OPTIONS = {
    "dafl": ["epochs=3", "iterations=2", "batch_size=4", "latent=5", "width=2"],
    "dense": [
        "epochs=3",
        "synthesis_batch_size=4",
        "batch_size=4",
        "generator.latent=5",
        "generator.width=2",
        "generator.steps=2",
    ],
    "adi": ["epochs=3", "synthesis_batch_size=4", "batch_size=4", "synthesis_steps=2", "steps=2"],
}
OPTIONS["coboosting"] = OPTIONS["dense"]


def pair() -> Ensemble:
    """Two clients of an architecture with few layers."""
    return Ensemble(
        [Client(f"site-{k}", network(k, DENSENET), DENSENET, 9, (k, 3, 7)) for k in range(2)], TASK
    )


def different(*, batch_norm: bool) -> Ensemble:
    """Client models of two or three architectures; without ``batch_norm`` one has none."""
    group = ArchitectureSpec(arguments={"width": 2, "norm": "group"})
    members = [
        Client("resnet", network(0), RESNET, 9, (1, 3, 7)),
        Client("densenet", network(5, DENSENET), DENSENET, 99, (40, 40, 19)),
        Client("group", build(group, IMAGE, 3, 7), group, 10, (3, 3, 4)),
    ]
    return Ensemble(members[:2] if batch_norm else members[1:], TASK)


def made(
    method: str, run: Run, changes: Sequence[str] = (), ensemble: Ensemble | None = None
) -> Model:
    """The global model of tiny clients."""
    chosen = methods.get(method).resolve("quick", [*OPTIONS[method], *changes])
    return methods.get(method).function(ensemble or pair(), run, chosen)


@functools.cache
def whole(method: str) -> tuple[nn.Module, list[dict[str, Any]], int]:
    """Model, curve and FLOPs of a run that is never interrupted."""
    with tempfile.TemporaryDirectory() as folder, Run(Path(folder) / "run", {}) as run:
        model = made(method, run).network
    return model, run.curves()["distillation"], run.costs()["distillation"].flops


def check_result_and_log(method: str, tmp_path: Path, terms: set[str]) -> None:
    """One network from client models that do not change, and the terms of the loss; another
    seed gives another one."""
    ensemble, state = pair(), torch.get_rng_state()
    with Run(tmp_path, {}, seed=1) as run:
        result = made(method, run, ensemble=ensemble)
    assert torch.equal(torch.get_rng_state(), state), "global randomness was used"
    assert result.network(torch.randn(2, *IMAGE.shape)).shape == (2, 3)
    assert result.architectures == (DENSENET,)
    assert not result.network.training
    assert equal(ensemble, pair())
    curve = run.curves()["distillation"]
    assert [entry["epoch"] for entry in curve] == [1, 2, 3]
    assert terms | {"loss", "learning_rate", "agreement"} <= curve[-1].keys()
    assert not equal(result.network, whole(method)[0])


def check_resumed(method: str, tmp_path: Path, changes: Sequence[str] = ()) -> None:
    """A run that is stopped in mid epoch, and then goes on, ends as one that is not."""
    learn, count = Learner.learn, 0

    def dies(self: Learner, *args: Any) -> dict[str, float]:
        nonlocal count
        count += 1
        if count == 5:
            raise Interrupted
        return learn(self, *args)

    with pytest.MonkeyPatch.context() as patch, Run(tmp_path, {}) as run:
        patch.setattr(Learner, "learn", dies)
        with pytest.raises(Interrupted):
            made(method, run, changes)
    with Run(tmp_path, {}, resume=True) as run:
        found = made(method, run, changes).network
    model, curve, flops = whole(method)
    assert equal(found, model)
    assert run.curves()["distillation"] == curve
    assert run.costs()["distillation"].flops == flops


def check_flops(method: str, tmp_path: Path) -> None:
    """A limit is overstepped by less than one inner step, wherever it lies."""
    meters: list[Meter] = []

    class Watched(Meter):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            meters.append(self)

    total = whole(method)[2]
    for share in (0.05, 0.5, 0.9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage, "Meter", Watched)
            with Run(tmp_path / str(share), {}, flops=share * total) as run:
                made(method, run)
        largest = max(meters[-1]._flops_of.values())
        assert share * total <= run.costs()["distillation"].flops < share * total + 2 * largest
