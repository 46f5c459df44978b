from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from oneround import models
from oneround.errors import OneRoundError
from oneround.models import registry
from oneround.models.batch_norm import batch_norms, require_batch_norm, update_statistics
from oneround.models.inference import folded, last_layer, to_fast_layout
from oneround.study import ArchitectureSpec, ImageSpec
from tests.tiny import CLASSES, DENSENET, IMAGE, RESNET, equal, network, seeded

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


def test_require_batch_norm_explains() -> None:
    require_batch_norm(network(), "north")
    group = models.build(ArchitectureSpec(arguments={"width": 8, "norm": "group"}), IMAGE, 3)
    norms = [layer for layer in group.modules() if isinstance(layer, nn.GroupNorm)]
    assert len(norms) == 20
    assert {layer.num_groups for layer in norms} == {8}
    with pytest.raises(OneRoundError, match="north has no BatchNorm layer") as caught:
        require_batch_norm(group, "north")
    assert "--method ensemble" in caught.value.remedy


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)
    ).eval()


def statistics_by_hand(
    model: nn.Sequential, batches: list[torch.Tensor]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Mean and unbiased variance of the input of the second BatchNorm layer, for each batch."""
    found = []
    for x in batches:
        mean = x.mean((0, 2, 3), keepdim=True)
        biased = (x - mean).square().mean((0, 2, 3), keepdim=True)
        y = model[1]((x - mean) / (biased + model[0].eps).sqrt())
        found.append((y.mean((0, 2, 3)), y.transpose(0, 1).flatten(1).var(1)))
    return found


@torch.no_grad()
def test_update_statistics_takes_the_mean_over_batches() -> None:
    model = two_layers()
    batches = [torch.randn(5, 3, 8, 8) * (i + 1) + i for i in range(3)]
    model[2].running_mean.fill_(7)
    update_statistics(model, iter(batches))
    means, variances = zip(*statistics_by_hand(model, batches), strict=True)
    assert torch.allclose(model[2].running_mean, torch.stack(means).mean(0), atol=1e-5)
    assert torch.allclose(model[2].running_var, torch.stack(variances).mean(0), atol=1e-4)


@torch.no_grad()
def test_update_statistics_with_momentum_keeps_a_part() -> None:
    model = two_layers()
    batches = [torch.randn(5, 3, 8, 8) * (i + 1) + i for i in range(3)]
    mean, variance = torch.full((4,), 7.0), torch.full((4,), 2.0)
    model[2].running_mean.copy_(mean)
    model[2].running_var.copy_(variance)
    update_statistics(model, batches, momentum=0.3)
    for batch_mean, batch_variance in statistics_by_hand(model, batches):
        mean = 0.7 * mean + 0.3 * batch_mean
        variance = 0.7 * variance + 0.3 * batch_variance
    assert torch.allclose(model[2].running_mean, mean, atol=1e-5)
    assert torch.allclose(model[2].running_var, variance, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_update_statistics_leaves_all_else(training: bool) -> None:
    model = two_layers().train(training)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    update_statistics(model, [torch.randn(5, 3, 8, 8)], momentum=0.5)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training is training for module in model.modules())
    assert [layer.momentum for layer in batch_norms(model)] == [0.1, 0.1]


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
        (lambda: network(1, ARCHITECTURES[2]), 0),  # without BatchNorm
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
