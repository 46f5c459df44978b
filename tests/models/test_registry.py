from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from torch import nn

from oneround import models
from oneround.errors import OneRoundError
from oneround.models import registry
from oneround.study import ArchitectureSpec, ImageSpec
from tests.tiny import DENSENET, IMAGE, RESNET, equal, network

ARCHITECTURES = [
    RESNET,
    ArchitectureSpec(arguments={"width": 4, "stem": "standard"}),
    ArchitectureSpec(arguments={"width": 4, "norm": "group"}),
    ArchitectureSpec(name="resnet34", arguments={"width": 2, "stem": "standard"}),
    DENSENET,
]


@pytest.fixture
def own_name() -> Iterator[str]:
    """A name to register; it is forgotten afterwards."""
    yield "own"
    registry._BUILDERS.pop("own", None)


def test_every_architecture_is_tested() -> None:
    assert {a.name for a in ARCHITECTURES} == set(models.names())


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [28, 64])
def test_builds_and_runs(architecture: ArchitectureSpec, channels: int, side: int) -> None:
    image = ImageSpec(channels=channels, height=side, width=side)
    model = models.build(architecture, image, 5)
    with torch.no_grad():
        assert model.eval()(torch.randn(2, *image.shape)).shape == (2, 5)


@pytest.mark.parametrize("name", models.names())
def test_builds_with_default_arguments(name: str) -> None:
    with torch.device("meta"):
        models.build(ArchitectureSpec(name=name), IMAGE, 3)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_expected_tensors_are_those_of_a_real_network(architecture: ArchitectureSpec) -> None:
    expected = models.expected_tensors(architecture, IMAGE, 4)
    real = models.build(architecture, IMAGE, 4).state_dict()
    assert list(expected) == list(real)
    for name, tensor in expected.items():
        assert tensor.is_meta
        assert (tensor.shape, tensor.dtype) == (real[name].shape, real[name].dtype)


def test_build_is_seeded_and_leaves_torchs_random_numbers_alone() -> None:
    before = torch.random.get_rng_state()
    first, same, other = (models.build(RESNET, IMAGE, 3, seed) for seed in (1, 1, 2))
    assert equal(first, same)
    assert not equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_build_leaves_the_random_numbers_of_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(seed: int) -> None:
        raise AssertionError("a GPU was reseeded")

    for device in (torch.cuda, torch.xpu):
        monkeypatch.setattr(device, "manual_seed_all", fail)
    monkeypatch.setattr(torch.mps, "manual_seed", fail)
    models.build(RESNET, IMAGE, 3)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_network_must_fit_the_images(device: str) -> None:
    small = IMAGE.model_copy(update={"height": 8, "width": 8})
    default = ArchitectureSpec(name="densenet")
    with torch.device(device):
        models.require_fit(models.build(RESNET, small, 3).train(), small, 3)
        models.require_fit(models.build(default, IMAGE, 3), IMAGE, 3)
        with pytest.raises(
            OneRoundError, match=r"cannot take images of shape \(3, 8, 8\)"
        ) as caught:
            models.require_fit(models.build(default, small, 3), small, 3)
        assert "larger images" in caught.value.remedy
        with pytest.raises(OneRoundError, match=r"\(1, 3\) for one image; \(1, 4\)"):
            models.require_fit(models.build(RESNET, small, 3), small, 4)


def test_checking_the_fit_changes_nothing() -> None:
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    models.require_fit(model, IMAGE, 3)
    assert model.training
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("resnet", {}, "unknown architecture 'resnet'"),
        ("resnet18", {"depth": 3}, "depth"),
        ("resnet18", {"stem": "huge"}, "huge"),
        ("resnet18", {"width": 100_000}, "width is out of range"),
        ("resnet18", {"width": -1}, "width is out of range"),
        ("densenet", {"block_config": [2] * 17}, "block_config is out of range"),
        ("densenet", {"block_config": [1000, 1000]}, "block_config is out of range"),
    ],
)
def test_refuses(name: str, arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(OneRoundError, match=reason) as caught:
        models.build(ArchitectureSpec(name=name, arguments=arguments), IMAGE, 3)
    assert caught.value.remedy


def test_registers_a_users_own_network(own_name: str) -> None:
    @models.register(own_name)
    def linear(channels: int, classes: int, *, size: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, classes))

    spec = ArchitectureSpec(name=own_name, arguments={"size": 16})
    assert own_name in models.names()
    assert models.build(spec, IMAGE, 3)(torch.zeros(2, *IMAGE.shape)).shape == (2, 3)


def test_finds_networks_of_installed_packages(
    own_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = EntryPoint(own_name, "oneround.models.registry:_densenet", "oneround.architectures")
    monkeypatch.setattr(registry, "_installed", lambda: [point])
    assert own_name in models.names()
    spec = DENSENET.model_copy(update={"name": own_name})
    assert isinstance(models.build(spec, IMAGE, 3), nn.Module)
