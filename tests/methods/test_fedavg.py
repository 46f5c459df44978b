from __future__ import annotations

import pytest
import torch

from oneround.ensemble import Client, Ensemble
from oneround.errors import OneRoundError
from oneround.methods.fedavg import average
from tiny import DENSENET, RESNET, clients, equal, network


def test_every_tensor_is_the_mean_weighted_by_images() -> None:
    members = clients(3)  # 10, 20 and 30 images
    made = average(Ensemble(members))
    states = [client.model.state_dict() for client in members]
    for name, value in made.model.state_dict().items():
        expected = sum(w * state[name].double() for w, state in zip((1, 2, 3), states, strict=True))
        assert torch.allclose(value.double(), expected / 6, atol=1e-6), name
        assert value.dtype == states[0][name].dtype
    assert made.architectures == (RESNET,)
    assert not made.model.training


def test_one_site_is_its_own_average() -> None:
    members = clients(1)
    made = average(Ensemble(members))
    assert equal(made.model, members[0].model)
    assert made.model is not members[0].model


def test_client_models_do_not_change() -> None:
    members = clients(2)
    average(Ensemble(members))
    assert equal(members[0].model, network(0))


def test_different_architectures_cannot_be_averaged() -> None:
    other = Client("other", network(1, DENSENET), DENSENET, 10)
    with pytest.raises(OneRoundError, match=r"densenet.*resnet18") as caught:
        average(Ensemble([*clients(1), other]))
    assert "kang2025" in caught.value.remedy
