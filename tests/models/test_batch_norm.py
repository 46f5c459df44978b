from __future__ import annotations

import pytest
import torch
from torch import nn

from oneround import models
from oneround.errors import OneRoundError
from oneround.models.batch_norm import batch_norms, require_batch_norm, update_statistics
from oneround.study import ArchitectureSpec
from tests.tiny import IMAGE, network


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
