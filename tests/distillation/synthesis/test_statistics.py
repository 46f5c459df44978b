from __future__ import annotations

import pytest
import torch
from torch import nn

from oneround.distillation.synthesis.statistics import (
    WatchedBatchNorm,
    statistics_distance,
    watch,
)
from oneround.models.batch_norm import batch_norms
from oneround.models.ensemble import Client, Ensemble
from tests.tiny import DENSENET, IMAGE, RESNET, TASK, clients, network


def batch_norm(affine: bool, channels: int = 5) -> nn.BatchNorm2d:
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(channels, affine=affine).double().eval()
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    if affine:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return layer.requires_grad_(False)


def distance_by_autograd(x: torch.Tensor, layer: nn.BatchNorm2d) -> torch.Tensor:
    variance, mean = torch.var_mean(x, (0, *range(2, x.ndim)), correction=0)
    return (mean - layer.running_mean).norm() + (variance - layer.running_var).norm()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.3, 2.0)])
def test_equals_plain_autograd(affine: bool, weights: tuple[float, float]) -> None:
    """Output, distance and gradient of a loss of both."""
    layer = batch_norm(affine)
    watched = WatchedBatchNorm(layer)
    x = torch.randn(4, 5, 6, 7, dtype=torch.double) * 2 + 3
    target = torch.randn(4, 5, 6, 7, dtype=torch.double)
    found = []
    for module in (watched, layer):
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        distance = watched.distance if module is watched else distance_by_autograd(leaf, layer)
        (weights[0] * (y * target).sum() + weights[1] * distance).backward()
        found.append((y.detach(), distance.detach(), leaf.grad))
    for mine, reference in zip(*found, strict=True):
        assert torch.allclose(mine, reference, rtol=1e-10, atol=1e-12)


def test_gradients_against_finite_differences() -> None:
    watched = WatchedBatchNorm(batch_norm(affine=True, channels=2))
    x = torch.randn(3, 2, 2, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: (watched(x), watched.distance), (x,))


def test_large_means_do_not_cost_precision() -> None:
    """Why the mean is taken off before the squares are summed."""
    layer = nn.BatchNorm2d(1).eval()
    layer.running_mean.fill_(1000.0)
    x = 1000 + torch.randn(8, 1, 16, 16)
    watched = WatchedBatchNorm(layer)
    watched(x)
    expected = distance_by_autograd(x.double(), layer.double())
    assert watched.distance.item() == pytest.approx(expected.item(), rel=1e-2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(4, 5, 6, 7), (4, 5, 1, 1), (1, 5, 3, 3), (4, 5, 6), (9, 5)])
def test_any_shape_and_layout(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    layer = batch_norm(affine=True)
    watched = WatchedBatchNorm(layer)
    x = torch.randn(shape, dtype=torch.double)
    x = (x.to(memory_format=layout) if x.ndim == 4 else x).requires_grad_()
    y = torch.relu_(watched(x))
    reference = nn.functional.batch_norm(
        x, layer.running_mean, layer.running_var, layer.weight, layer.bias
    ).relu()
    distance = distance_by_autograd(x, layer)
    assert torch.allclose(y, reference)
    assert watched.distance.item() == pytest.approx(distance.item())
    mine, expected = (
        torch.autograd.grad(output.square().sum() + term, x)[0]
        for output, term in ((y, watched.distance), (reference, distance))
    )
    assert torch.allclose(mine, expected)


def test_statistics_without_any_distance() -> None:
    """Where a norm has no gradient, its gradient is taken as zero, as torch does."""
    layer = batch_norm(affine=False, channels=1)
    layer.running_mean.fill_(0.0)
    layer.running_var.fill_(1.0)
    watched = WatchedBatchNorm(layer)
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.double, requires_grad=True)
    watched(x)
    watched.distance.backward()
    assert watched.distance.item() == 0
    assert torch.equal(x.grad, torch.zeros(2, 1, dtype=torch.double))


def test_mixed_precision() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8).eval(), nn.ReLU(inplace=True))
    watched = watch(Ensemble([Client("one", model, RESNET, 1)], TASK, "logits"))
    x = torch.randn(4, *IMAGE.shape, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        (watched.models[0](x).sum() + statistics_distance(watched, "sum")).backward()
    assert x.grad.isfinite().all()


def mixed_ensemble() -> Ensemble:
    other = Client("other", network(5, DENSENET), DENSENET, 10, (1, 2, 3))
    return Ensemble([*clients(2), other], TASK, "probabilities")


def test_an_ensemble_of_different_architectures() -> None:
    """Outputs, term and pixel gradients equal hooks on the unchanged networks."""
    ensemble = mixed_ensemble()
    watched = watch(ensemble)
    layers = list(batch_norms(ensemble.models))
    assert sum(isinstance(m, WatchedBatchNorm) for m in watched.models.modules()) == len(layers)
    assert not list(batch_norms(watched.models))

    x = torch.randn(4, *IMAGE.shape)
    mine, reference = x.clone().requires_grad_(), x.clone().requires_grad_()
    output = watched(mine)
    term = statistics_distance(watched, "sum")
    (output[:, 0].sum() + term).backward()

    terms: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda layer, inputs: terms.append(distance_by_autograd(inputs[0], layer))
        )
        for layer in layers
    ]
    plain = ensemble(reference)
    (plain[:, 0].sum() + torch.stack(terms).sum()).backward()
    for hook in hooks:
        hook.remove()
    assert torch.allclose(output, plain, atol=1e-5)
    assert term.item() == pytest.approx(torch.stack(terms).sum().item(), rel=1e-5)
    scale = reference.grad.abs().max().item()
    assert torch.allclose(mine.grad, reference.grad, atol=1e-4 * scale)
    assert torch.allclose(watched.unwatched(x), plain, atol=1e-5)
    assert statistics_distance(watched, "mean").item() == pytest.approx(term.item() / len(layers))


def test_the_ensemble_itself_is_not_touched() -> None:
    ensemble = mixed_ensemble()
    before = {name: value.clone() for name, value in ensemble.state_dict().items()}
    watch(ensemble)(torch.randn(2, *IMAGE.shape))
    assert not any(isinstance(m, WatchedBatchNorm) for m in ensemble.modules())
    assert all(torch.equal(v, before[name]) for name, v in ensemble.state_dict().items())


def test_nothing_to_watch() -> None:
    assert statistics_distance(nn.Linear(2, 2), "sum").item() == 0
