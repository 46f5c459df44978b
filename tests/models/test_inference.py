from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from oneround import models
from oneround.errors import OneRoundError
from oneround.models.batch_norm import batch_norms
from oneround.models.inference import folded, last_layer, to_fast_layout
from oneround.study import ArchitectureSpec
from tests.tiny import CLASSES, DENSENET, IMAGE, RESNET, equal, network, seeded


class Own(nn.Module):
    """A network that torch.fx follows, unless its forward pass looks at the pixels."""

    def __init__(self, *, looks: bool = False) -> None:
        super().__init__()
        self.looks = looks
        self.first, self.shared = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4, affine=k != 0) for k in range(4))
        self.untracked = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.looks and x.mean() > 100:
            return x
        x = nn.functional.relu(self.norms[0](self.first(x)))  # the one to fold
        twice = self.shared(x)
        x = torch.relu_(self.norms[1](twice)) + twice.tanh()
        x = self.norms[3](self.norms[2](self.shared(x)).relu())
        return self.untracked(x).mean((2, 3))


@pytest.mark.parametrize(
    ("model", "left"),
    [
        (lambda: network(1), 0),
        (
            lambda: network(1, ArchitectureSpec(arguments={"width": 4, "norm": "group"})),
            0,
        ),  # without BatchNorm
        (lambda: network(1, DENSENET), 4),  # BatchNorm comes before most convolutions
        (lambda: Own(), 3),
        (lambda: Own(looks=True), 4),
    ],
)
def test_folded_networks_do_the_same(model: Callable[[], nn.Module], left: int) -> None:
    torch.manual_seed(0)
    original = model().double().eval()
    for layer in batch_norms(original):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
    before, found = copy.deepcopy(original), folded(original)
    assert equal(original, before)
    assert len(list(batch_norms(found))) == left
    assert not any(module.training for module in found.modules())
    outputs, flops = [], []
    for one in (original.requires_grad_(False), found.requires_grad_(False)):
        x = torch.randn(4, *IMAGE.shape, dtype=torch.double, generator=seeded()).requires_grad_()
        with FlopCounterMode(display=False) as counter:
            y = one(x)
            y[:, 0].sum().backward()
        outputs.append((y, x.grad))
        flops.append(counter.get_total_flops())
    assert torch.allclose(outputs[0][0], outputs[1][0])
    assert torch.allclose(outputs[0][1], outputs[1][1])
    assert flops[0] == flops[1] > 0


def is_channels_last(model: nn.Module) -> bool:
    return all(
        layer.weight.is_contiguous(memory_format=torch.channels_last)
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d)
    )


@pytest.mark.parametrize(
    ("architecture", "strided"),
    [
        (RESNET, 3),  # strided 1×1 convolutions of 2, 4 and 8 channels
        (ArchitectureSpec(arguments={"width": 8}), 1),
        (ArchitectureSpec(arguments={"width": 16}), 0),
        (DENSENET, 0),  # its 1×1 convolutions have no stride
    ],
    ids=str,
)
def test_no_strided_pointwise_convolution_where_onednn_is_wrong(
    architecture: ArchitectureSpec, strided: int
) -> None:
    model = models.build(architecture, IMAGE, 3)
    before = model.state_dict()
    plain = sum(type(layer) is nn.Conv2d for layer in model.modules())
    to_fast_layout(model)
    to_fast_layout(model)  # again changes nothing
    assert is_channels_last(model)
    assert plain - sum(type(layer) is nn.Conv2d for layer in model.modules()) == strided
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_unusual_strided_pointwise_convolution_is_left_alone() -> None:
    model = nn.Conv2d(3, 8, 1, stride=2, padding=1)
    to_fast_layout(model)
    assert type(model) is nn.Conv2d


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"groups": 3}, {"stride": (1, 3)}])
def test_pointwise_convolutions_without_their_stride(side: int, options: dict[str, Any]) -> None:
    layer = nn.Conv2d(3, 6, 1, **{"stride": 2} | options).double()
    x = torch.randn(2, 3, side, side + 2, dtype=torch.double, requires_grad=True)
    expected = layer(x)
    weight = torch.randn_like(expected)
    gradient = torch.autograd.grad((expected * weight).sum(), x)
    to_fast_layout(layer)
    found = layer(x)
    assert torch.allclose(found, expected)
    assert torch.allclose(torch.autograd.grad((found * weight).sum(), x)[0], gradient[0])


@pytest.mark.parametrize("width", [2, 16])
def test_gradients_do_not_depend_on_the_layout(width: int) -> None:
    gradients = []
    for fast in (False, True):
        model = models.build(ArchitectureSpec(arguments={"width": width}), IMAGE, 3)
        if fast:
            to_fast_layout(model)
        x = torch.randn(4, *IMAGE.shape, generator=torch.Generator().manual_seed(0))
        model(x).square().sum().backward()
        gradients.append(torch.cat([p.grad.contiguous().flatten() for p in model.parameters()]))
    scale = gradients[0].abs().max()
    assert torch.allclose(gradients[0], gradients[1], atol=1e-4 * float(scale))


@pytest.mark.parametrize("architecture", [RESNET, DENSENET], ids=str)
def test_last_layer(architecture: ArchitectureSpec) -> None:
    model = network(1, architecture)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layer = last_layer(model, IMAGE, len(CLASSES))
    assert all(torch.equal(state[n], tensor) for n, tensor in model.state_dict().items())
    x = torch.randn(4, *IMAGE.shape, generator=seeded())
    before = model(x)
    layer.bias.data += torch.tensor([1.0, 2.0, 3.0])
    assert torch.allclose(model(x) - before, torch.tensor([1.0, 2.0, 3.0]), atol=1e-5)


def test_last_layer_that_is_not_there() -> None:
    size = IMAGE.channels * IMAGE.height * IMAGE.width
    without_bias = nn.Sequential(nn.Flatten(), nn.Linear(size, 3, bias=False))
    more_follows = nn.Sequential(nn.Flatten(), nn.Linear(size, 3), nn.Softplus())
    for model in (without_bias, more_follows):
        with pytest.raises(OneRoundError, match="does not end with a fully connected layer"):
            last_layer(model, IMAGE, 3)
