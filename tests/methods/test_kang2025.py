from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from oneround import methods
from oneround.model_file import Model
from oneround.models.ensemble import Client, Ensemble
from oneround.runs.run import Run
from tests.tiny import (
    DENSENET,
    IMAGE,
    KANG2025,
    RESNET,
    TASK,
    Watching,
    clients,
    equal,
    global_model,
    network,
)

METHOD = methods.get("kang2025")


def made(run: Run, changes: Sequence[str] = (), ensemble: Ensemble | None = None) -> Model:
    options = METHOD.resolve("quick", [*KANG2025, *changes])
    return METHOD.function(ensemble or Ensemble(clients(2), TASK), run, options)


def test_makes_one_network_from_client_models_alone(tmp_path: Path) -> None:
    told = set()
    with Run(tmp_path, {}, callbacks=[Watching(lambda stage, *rest: told.add(stage))]) as run:
        result = made(run)
    assert result.network(torch.randn(2, *IMAGE.shape)).shape == (2, 3)
    assert result.architectures == (RESNET,)
    assert not result.network.training
    assert set(run.costs()) == told == {"synthesis", "adaptation", "distillation"}
    assert all(cost.flops > 0 for cost in run.costs().values())
    assert (tmp_path / "bank" / "000.safetensors").exists()
    gallery = load_file(tmp_path / "gallery.safetensors")
    assert gallery["bank"].dtype == torch.uint8
    assert len(gallery["bank"]) == len(gallery["bank_targets"]) == 6
    assert gallery["mixed_lambda"].diff().max() <= 0, "from clean to noisy"


@pytest.mark.parametrize("mix", ["noise", "bank", "none"])
def test_the_gallery_shows_noise_and_says_whether_it_was_used(tmp_path: Path, mix: str) -> None:
    with Run(tmp_path, {}) as run:
        made(run, [f"distillation.mix={mix}"])
    gallery = load_file(tmp_path / "gallery.safetensors")
    assert len(gallery["noise"]) == len(gallery["noise_families"]) > 0
    assert gallery["mixed_lambda"].min() < 0.5 < gallery["mixed_lambda"].max()
    with safe_open(tmp_path / "gallery.safetensors", "pt") as file:
        assert json.loads(file.metadata()["about"])["mix"] == mix


def test_is_deterministic_and_depends_on_the_seed(tmp_path: Path) -> None:
    results = []
    for number, seed in enumerate((1, 1, 2)):
        with Run(tmp_path / str(number), {}, seed=seed) as run:
            results.append(made(run).network)
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])


EARLIER = ((60, 60, 2), (60, 60, 2))


@pytest.mark.parametrize(
    ("counts", "changes", "from_the_late_one"),
    [
        ((*EARLIER, (80, 80, 80)), [], True),
        ((*EARLIER, (5, 5, 5)), [], False),  # a class, and too little of it for a full run
        (((60, 60, 60), (60, 60, 60), (90, 90, 90)), [], False),  # no class of its own
        ((*EARLIER, None), [], False),  # keeps its class counts
        ((*EARLIER, (80, 80, 80)), ["distillation.start=scratch"], False),
        ((*EARLIER, (80, 80, 80)), ["distillation.student.name=densenet121"], False),
    ],
    ids=str,
)
def test_extension_starts_from_a_late_site_that_brings_a_class(
    tmp_path: Path,
    counts: Sequence[tuple[int, ...] | None],
    changes: list[str],
    from_the_late_one: bool,
) -> None:
    members = [
        replace(client, class_counts=c, images=sum(c or (900,)))
        for client, c in zip(clients(3), counts, strict=True)
    ]
    global_model(network(7), DENSENET).save(tmp_path)
    options: Any = METHOD.resolve("quick", ["distillation.start=auto", *changes])
    assert METHOD.extend
    extended = METHOD.extend(Ensemble(members, TASK), options, tmp_path, ("site-2",))
    expected = (
        (options.distillation.start, options.distillation.student)
        if from_the_late_one
        else (str(tmp_path / "global.safetensors"), DENSENET)
    )
    assert (extended.distillation.start, extended.distillation.student) == expected
    assert extended.distillation.steps == round(options.distillation.steps / 3)
    assert extended.inversion.images == round(options.inversion.images / 3)


@pytest.mark.parametrize(
    "changes",
    [
        ["distillation.mix=none", "distillation.teachers=original"],
        ["adaptation.statistics=batch", "rule=logits", "noise.families=['gaussian']"],
        ["inversion.snapshots=[0.5, 1.0]", "distillation.average=0.5"],
        ["distillation.start=auto", "distillation.learning_rate=1e-4"],
    ],
    ids=str,
)
def test_every_choice_can_be_switched(tmp_path: Path, changes: list[str]) -> None:
    with Run(tmp_path / "default", {}) as run:
        default = made(run).network
    with Run(tmp_path / "switched", {}) as run:
        switched = made(run, changes).network
    assert not equal(default, switched)
    assert switched(torch.randn(2, *IMAGE.shape)).isfinite().all()


def test_client_models_of_different_architectures(tmp_path: Path) -> None:
    other = Client("other", network(5, DENSENET), DENSENET, 99, (40, 40, 19))
    with Run(tmp_path, {}) as run:
        result = made(run, ensemble=Ensemble([*clients(1), other], TASK))
    assert result.architectures == (DENSENET,), "that of the site with the most images"
