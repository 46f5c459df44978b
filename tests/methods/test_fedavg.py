from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from oneround import methods, models
from oneround.errors import OneRoundError
from oneround.methods import SimulatedSites
from oneround.model_file import Model
from oneround.models.ensemble import Client, Ensemble, average
from oneround.runs.run import Run
from tests.tiny import (
    DENSENET,
    IMAGE,
    RESNET,
    STUDY,
    TASK,
    clients,
    equal,
    images,
    interrupted,
    network,
)

METHOD = methods.get("fedavg")
SITES = SimulatedSites(
    STUDY, {"site-0": (images(16, seed=1), None), "site-1": (images(32, seed=2), None)}
)


def made(run: Run, changes: Sequence[str] = ()) -> Model:
    return METHOD.function(Ensemble(clients(2), TASK), run, METHOD.resolve("quick", changes))


def test_every_tensor_is_the_mean_weighted_by_images() -> None:
    members = clients(3)  # 10, 20 and 30 images
    model = average(Ensemble(members, TASK))
    states = [client.model.state_dict() for client in members]
    for name, value in model.state_dict().items():
        expected = sum(w * state[name].double() for w, state in zip((1, 2, 3), states, strict=True))
        assert torch.allclose(value.double(), expected / 6, atol=1e-6), name
        assert value.dtype == states[0][name].dtype
    assert not model.training


def test_one_site_is_its_own_average() -> None:
    members = clients(1)
    model = average(Ensemble(members, TASK))
    assert equal(model, members[0].model)
    assert model is not members[0].model


def test_client_models_do_not_change() -> None:
    members = clients(2)
    average(Ensemble(members, TASK))
    assert equal(members[0].model, network(0))


def test_different_architectures_cannot_be_averaged() -> None:
    other = Client("other", network(1, DENSENET), DENSENET, 10)
    with pytest.raises(OneRoundError, match=r"densenet.*resnet18") as caught:
        average(Ensemble([*clients(1), other], TASK))
    assert "kang2025" in caught.value.remedy


def test_one_round_is_the_average_of_the_submissions(tmp_path: Path) -> None:
    with Run(tmp_path, {}) as run:
        result = made(run)
    assert equal(result.network, average(Ensemble(clients(2), TASK)))
    assert result.architectures == (RESNET,)
    assert result.bytes_sent is None


def test_many_rounds_need_the_images_of_the_sites(tmp_path: Path) -> None:
    with Run(tmp_path, {}) as run, pytest.raises(OneRoundError, match="only a simulation") as error:
        made(run, ["rounds=2"])
    assert "simulate" in error.value.remedy


def test_many_rounds_train_the_average_again_and_again(tmp_path: Path) -> None:
    with Run(tmp_path, {}, simulated=SITES) as run:
        result = made(run, ["rounds=3", "learning_rate=0.02"])
    curve = run.stages["rounds"].curve
    assert [entry["round"] for entry in curve] == [1, 2, 3]
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert result.network(torch.randn(2, *IMAGE.shape)).shape == (2, 3)
    size = models.size_in_bytes(result.network)
    assert result.bytes_sent == 3 * 2 * 2 * size, "rounds, sites, up and down"
    one_pass = run.stages["rounds"].cost.flops / 3
    forward = 2 * 48  # images; at least twice as much for the backward pass
    assert one_pass > forward


def test_interrupted_rounds_end_where_the_others_do(tmp_path: Path) -> None:
    with Run(tmp_path / "whole", {}, simulated=SITES) as run:
        whole = made(run, ["rounds=3"])
    with Run(tmp_path / "parts", {}, simulated=SITES) as run:
        stage = run.stage("rounds")
        run.stage = lambda *a, **k: stage  # type: ignore[method-assign]
        with interrupted(stage, 2):
            made(run, ["rounds=3"])
    with Run(tmp_path / "parts", {}, simulated=SITES, resume=True) as run:
        assert equal(made(run, ["rounds=3"]).network, whole.network)
