from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from oneround import methods
from oneround.distillation.synthesis import ImageBank
from oneround.errors import OneRoundError
from oneround.methods.headfit import knowledge, lessons, teach_last_layer
from oneround.model_file import Model
from oneround.models.ensemble import Client, Ensemble, prior_corrected
from oneround.models.inference import last_layer
from oneround.report.pictures import read_gallery
from oneround.runs.cost import Meter
from oneround.runs.run import Run
from oneround.runs.stage import Stage
from tests.methods import distilling
from tests.tiny import (
    DENSENET,
    HEADFIT,
    IMAGE,
    RESNET,
    STUDY,
    TASK,
    Interrupted,
    Watching,
    clients,
    equal,
    network,
    seeded,
)

METHOD = methods.get("headfit")


def members(*counts: tuple[int, ...] | None) -> Ensemble:
    return Ensemble(
        [
            replace(client, class_counts=c, images=sum(c or (9,)))
            for client, c in zip(clients(len(counts)), counts, strict=True)
        ],
        TASK,
    )


SKEWED = ((90, 60, 0), (0, 30, 80))


def made(run: Run, changes: Sequence[str] = (), ensemble: Ensemble | None = None) -> Model:
    options = METHOD.resolve("quick", [*HEADFIT, *changes])
    return METHOD.function(ensemble or members(*SKEWED), run, options)


def test_only_the_last_layer_of_the_broadest_client_learns(tmp_path: Path) -> None:
    ensemble = members(*SKEWED)
    before = [client.model.state_dict() for client in ensemble.clients]
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in before]
    with Run(tmp_path, {}) as run:
        result = made(run, ensemble=ensemble)
    after, start = result.network.state_dict(), ensemble.clients[0].model.state_dict()
    different = {name for name in after if not torch.equal(after[name], start[name])}
    assert different == {"fc.weight", "fc.bias"}
    whose, lacks = result.notes
    assert "those of the client model of site-0" in whose
    assert f"site-0 has hardly any image of {STUDY.classes[2]}:" in lacks
    assert result.architectures == (RESNET,)
    assert not result.network.training
    for state, client in zip(before, ensemble.clients, strict=True):
        now = client.model.state_dict()
        assert all(torch.equal(now[name], tensor) for name, tensor in state.items())
    assert set(run.costs()) == {"synthesis", "distillation"}
    assert all(cost.flops > 0 for cost in run.costs().values())
    gallery = read_gallery(tmp_path / "gallery.safetensors", STUDY.classes)
    assert gallery is not None
    assert (bool(gallery.bank), bool(gallery.noise)) == (True, False), "images for the report"


def test_interrupted_and_resumed_is_bit_equal(tmp_path: Path) -> None:
    with Run(tmp_path / "straight", {}) as run:
        straight, curve = made(run).network, run.curves()["distillation"]
        flops = run.spent().flops
    for step in (1, 4):

        def stop(stage: str, done: int, total: int, note: str, step: int = step) -> None:
            if stage == "distillation" and done == step:
                raise Interrupted

        out = tmp_path / str(step)
        with pytest.raises(Interrupted), Run(out, {}, callbacks=[Watching(stop)]) as run:
            made(run)
        with Run(out, {}, resume=True) as run:
            assert equal(made(run).network, straight)
            assert run.curves()["distillation"] == curve
            assert run.spent().flops == flops


def test_flops_have_a_limit(tmp_path: Path) -> None:
    changes = ["last_layer.views=1", "inversion.steps=40"]
    with Run(tmp_path / "free", {}) as run:
        made(run, changes)
        free = run.spent().flops
    with Run(tmp_path / "limited", {}, flops=free / 2) as run:
        made(run, changes)
        assert 0.4 * free < run.spent().flops < 0.6 * free


def test_where_flops_are_few_the_bank_is_viewed_less_often_and_the_layer_learns_all_the_same(
    tmp_path: Path,
) -> None:
    changes = ["last_layer.views=50", "synthesis_share=0.5", "inversion.steps=1"]
    start = prior_corrected(members(*SKEWED)).clients[0].model.state_dict()["fc.weight"]
    with Run(tmp_path / "free", {}) as run:
        made(run, changes)
        limit = run.spent().flops / 2
    with Run(tmp_path / "limited", {}, flops=limit) as run:
        straight = made(run, changes).network
        assert 0.7 * limit < run.spent().flops < limit

    def stop(stage: str, done: int, total: int, note: str) -> None:
        if stage == "distillation" and done == 4:
            raise Interrupted

    with (
        pytest.raises(Interrupted),
        Run(tmp_path / "r", {}, flops=limit, callbacks=[Watching(stop)]) as run,
    ):
        made(run, changes)
    with Run(tmp_path / "r", {}, flops=limit, resume=True) as run:
        assert equal(made(run, changes).network, straight)
    assert not torch.equal(straight.state_dict()["fc.weight"], start)
    with Run(tmp_path / "least", {}, flops=1) as run:
        made(run, changes)  # one view, even if it is too dear


def test_the_student_ends_where_the_loss_is_least() -> None:
    """The problem is convex; scipy's minimum of it, written down anew, is the reference."""
    ensemble = prior_corrected(members(*SKEWED))
    first = ensemble.clients[0]
    bank = ImageBank(
        torch.randn(40, *IMAGE.shape, generator=seeded()).half(),
        torch.zeros(40, dtype=torch.int64),
        torch.ones(40),
    )
    options: Any = METHOD.resolve(
        "quick", ["last_layer.steps=1500", "last_layer.views=1", "last_layer.trust=0.1"]
    )
    layer_options = options.last_layer
    student = teach_last_layer(ensemble, first, bank, layer_options, Stage("distillation"))
    taught_layer = last_layer(student, IMAGE, 3)
    own, taught, features = (
        part.double().numpy()
        for part in lessons(ensemble, first, bank, layer_options, Stage("distillation"), Meter())
    )
    stay = 0.1 * np.array([90 / 100, 60 / 70, 0]) + 0.05  # 90, 60 and no images
    soft = np.exp(taught / 4)
    soft /= soft.sum(1, keepdims=True)

    def loss(flat: np.ndarray) -> float:
        logits = features @ flat[:-3].reshape(3, -1).T + flat[-3:]
        log_q = logits / 4 - np.log(np.exp(logits / 4).sum(1, keepdims=True))
        divergence = (soft * (np.log(soft) - log_q)).sum(1).mean()
        change = ((logits - own) ** 2).mean(0)
        return float(16 * divergence + (stay * change).sum())

    found = np.concatenate(
        [taught_layer.weight.double().numpy().ravel(), taught_layer.bias.double().numpy()]
    )
    start_layer = last_layer(first.model, IMAGE, 3)
    start = np.concatenate(
        [start_layer.weight.double().numpy().ravel(), start_layer.bias.double().numpy()]
    )
    least = minimize(loss, start).fun
    assert least < loss(found) < least + 0.02 * (loss(start) - least)


def test_knowledge() -> None:
    open_site, secretive_site = members((90, 10, 0), None).clients
    assert knowledge(open_site, 3).tolist() == pytest.approx([0.9, 0.5, 0])
    assert knowledge(secretive_site, 3).tolist() == [1, 1, 1]


def test_what_the_own_site_knows_best_stays(tmp_path: Path) -> None:
    """Where the start knows every class the corrected client model is the global model."""
    ensemble = members((90, 60, 50), (5, 5, 5))
    corrected = prior_corrected(ensemble).clients[0].model
    x = torch.randn(8, *IMAGE.shape, generator=seeded())
    change = []
    for trust in (0, 1000):
        with Run(tmp_path / str(trust), {}) as run:
            result = made(
                run,
                [f"last_layer.trust={trust}", "last_layer.caution=0", "last_layer.steps=400"],
                ensemble,
            )
        change.append((result.network(x) - corrected(x)).abs().max().item())
    assert change[1] < 0.1 < 1 < change[0]


def test_client_models_of_different_architectures(tmp_path: Path) -> None:
    with Run(tmp_path / "made", {}) as run:
        result = made(run, ensemble=distilling.different(batch_norm=True))
    assert result.architectures == (DENSENET,)


def test_a_network_without_a_last_layer_is_refused(tmp_path: Path) -> None:
    model = torch.nn.Sequential(network(1), torch.nn.Softplus())
    ensemble = Ensemble([Client("site-0", model, RESNET, 9, (3, 3, 3))], TASK)
    with Run(tmp_path, {}) as run, pytest.raises(OneRoundError, match="fully connected layer"):
        made(run, ensemble=ensemble)


def test_late_sites_add_images_of_their_own(tmp_path: Path) -> None:
    assert METHOD.extend
    options: Any = METHOD.resolve()
    extended = METHOD.extend(members(*SKEWED), options, tmp_path, ("site-1",))
    assert extended.inversion.images == options.inversion.images // 2
    assert extended.last_layer == options.last_layer
