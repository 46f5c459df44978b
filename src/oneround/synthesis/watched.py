"""BatchNorm layers that say how far their input is from what they saw in training.

On a CPU, torch's variance over a batch and its backward pass of BatchNorm in eval mode cost
more than the convolutions of a small network. Here both are a few element-wise operations,
with a backward pass of our own: the whole inversion step takes about half the time.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from oneround.ensemble import Ensemble
from oneround.models import is_batch_norm, require_batch_norm


class WatchedBatchNorm(nn.Module):
    """BatchNorm in eval mode that keeps the distance of its last input's statistics.

    Attributes:
        distance: ‖μ(x) − μ‖₂ + ‖σ²(x) − σ²‖₂ of the last input x, with the mean and the biased
            variance over all but the channel dimension, and (μ, σ²) the running statistics.
    """

    distance: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__()
        assert layer.running_mean is not None
        assert layer.running_var is not None
        scale = (layer.running_var + layer.eps).rsqrt()
        self.register_buffer("mean", layer.running_mean)
        self.register_buffer("variance", layer.running_var)
        self.register_buffer("scale", scale * layer.weight.detach() if layer.affine else scale)
        shift = layer.bias.detach() if layer.affine else torch.zeros_like(scale)
        self.register_buffer("shift", shift)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The normalized input, of the same shape (B, C, …)."""
        watched = _NormalizeAndWatch.apply(  # type: ignore[no-untyped-call]
            x, self.mean, self.scale, self.shift
        )
        y, offset, variance = watched
        self.distance = offset.norm() + (variance - self.variance).norm()
        return y  # type: ignore[no-any-return]


class _NormalizeAndWatch(torch.autograd.Function):
    """(x − mean)·scale + shift, and mean and variance of x − mean over the batch."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        per_channel = (1, -1, *(1,) * (x.ndim - 2))
        others = [0, *range(2, x.ndim)]
        centered = x - mean.view(per_channel)
        offset = centered.mean(others)
        variance = centered.square().mean(others) - offset.square()
        ctx.save_for_backward(centered, offset, scale)
        y = torch.addcmul(shift.view(per_channel), centered, scale.view(per_channel))
        return y, offset, variance

    @staticmethod
    def backward(
        ctx: Any, dy: torch.Tensor, doffset: torch.Tensor, dvariance: torch.Tensor
    ) -> tuple[torch.Tensor, None, None, None]:
        centered, offset, scale = ctx.saved_tensors
        per_channel = (1, -1, *(1,) * (dy.ndim - 2))
        slope = 2 * dvariance / (centered.numel() // centered.shape[1])
        constant = doffset / (centered.numel() // centered.shape[1]) - slope * offset
        dx = torch.addcmul(constant.view(per_channel), centered, slope.view(per_channel))
        return dx.addcmul_(dy, scale.view(per_channel)), None, None, None


def watch(ensemble: Ensemble, *, needed: bool = False) -> Ensemble:
    """A copy of ``ensemble`` in which every BatchNorm layer is watched.

    Raises:
        OneRoundError: a client model has no BatchNorm layer, and the distances are ``needed``.
    """
    for client in ensemble.clients if needed else ():
        require_batch_norm(client.model, client.site)
    watched = copy.deepcopy(ensemble)
    for parent in list(watched.modules()):
        for name, child in parent.named_children():
            if is_batch_norm(child):
                setattr(parent, name, WatchedBatchNorm(child))
    return watched


def statistics_distance(model: nn.Module, reduction: Literal["sum", "mean"]) -> torch.Tensor:
    """The BatchNorm term of the last forward pass, over all watched layers (``mean``: divided
    by their number)."""
    distances = [m.distance for m in model.modules() if isinstance(m, WatchedBatchNorm)]
    if not distances:
        return torch.zeros((), device=next(model.parameters()).device)
    total = torch.stack(distances).sum()
    return total if reduction == "sum" else total / len(distances)
