"""BatchNorm layers that measure how far their input is from the statistics of training.

On a CPU, torch's variance over a batch and its backward pass of BatchNorm in eval mode cost
more than the convolutions of a small network. Here both are a few element-wise operations with a
backward pass of their own, and an inversion step takes about half the time.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from oneround.models.batch_norm import is_batch_norm, require_batch_norm
from oneround.models.ensemble import Ensemble


class WatchedBatchNorm(nn.Module):
    """BatchNorm in eval mode that keeps the distance of its last input's statistics to its own.

    Attributes:
        distance: ‖μ(x) − μ‖₂ + ‖σ²(x) − σ²‖₂ of the last input x, a scalar, with mean and biased
            variance over all dimensions but the channels, and (μ, σ²) the running statistics.
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
        self.register_buffer("shift", shift - layer.running_mean * self.scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The normalized input, (B, C, …)."""
        y, self.distance = _NormalizeAndWatch.apply(  # type: ignore[no-untyped-call]
            x, self.mean, self.variance, self.scale, self.shift
        )
        return y  # type: ignore[no-any-return]


def _rows(x: torch.Tensor) -> torch.Tensor:
    """The same memory with the channels last, (B, …, C), or, if they are contiguous, (B, H, W·C),
    because short rows do not fill vector registers."""
    last = x.movedim(1, -1)
    return last.flatten(-2) if x.ndim > 2 and last.is_contiguous() else last


class _NormalizeAndWatch(torch.autograd.Function):
    """x·scale + shift, and the distance between the statistics of x and (mean, variance)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        mean: torch.Tensor,
        variance: torch.Tensor,
        scale: torch.Tensor,
        shift: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.empty_like(x, dtype=scale.dtype)
        rows, work = _rows(x), _rows(y)  # the output's memory, warm in the cache, for all steps
        center = _channel_means(rows, len(mean))
        centers, scales, shifts = _spread(rows, center, scale, shift)
        torch.sub(rows, centers, out=work)
        excess = _channel_means(work.square_(), len(mean)) - variance
        torch.addcmul(shifts, rows, scales, out=work)
        differences = torch.stack((center - mean, excess))
        distances = torch.linalg.vector_norm(differences, dim=1)
        ctx.save_for_backward(x, scale, center, differences, distances)
        return y, distances.sum()

    @staticmethod
    def backward(
        ctx: Any, dy: torch.Tensor, ddistance: torch.Tensor
    ) -> tuple[torch.Tensor, None, None, None, None]:
        x, scale, center, differences, distances = ctx.saved_tensors
        tiny = torch.finfo(distances.dtype).tiny  # takes the gradient of a norm of zeros as zero
        shares = ddistance * (len(scale) / x.numel()) / distances.clamp_min(tiny)
        constant, slope = (differences * shares.unsqueeze(1)).unbind()
        slope = 2 * slope
        rows, last = _rows(x), dy.movedim(1, -1)
        constants, slopes, scales = _spread(rows, constant - slope * center, slope, scale)
        dx = torch.addcmul(constants, rows, slopes)
        dx.addcmul_(last.reshape(dx.shape), scales)
        return dx.view(last.shape).movedim(-1, 1), None, None, None, None


def _channel_means(rows: torch.Tensor, channels: int) -> torch.Tensor:
    """Mean of each channel, (C,)."""
    return rows.mean(tuple(range(rows.ndim - 1))).view(-1, channels).mean(0)


def _spread(rows: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The values, (C,) each, repeated to the length of a row."""
    stacked, often = torch.stack(values), rows.shape[-1] // len(values[0])
    return stacked.unsqueeze(1).expand(-1, often, -1).flatten(1).unbind()


class Watched(Ensemble):
    """A copy of an ensemble with a :class:`WatchedBatchNorm` for every BatchNorm layer.

    Attributes:
        unwatched: The same client models without them: faster where distances are not needed.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__(ensemble.clients, ensemble.task, ensemble.rule)
        for parent in list(self.modules()):
            for name, child in parent.named_children():
                if is_batch_norm(child):
                    setattr(parent, name, WatchedBatchNorm(child))
        self.unwatched = ensemble.folded()
        self.votes = ensemble.votes
        self.to(ensemble.weights.device)


def watch(ensemble: Ensemble, *, needed: bool = False) -> Watched:
    """A copy of ``ensemble`` that measures the distance to its BatchNorm statistics.

    Args:
        ensemble: The client models.
        needed: Whether the distances are needed, so that each client model must have BatchNorm.

    Raises:
        OneRoundError: the distances are needed, and a client model has no BatchNorm layer.
    """
    for client in ensemble.clients if needed else ():
        require_batch_norm(client.model, client.site)
    return Watched(ensemble)


def statistics_distance(model: nn.Module, reduction: Literal["sum", "mean"]) -> torch.Tensor:
    """Distance to the BatchNorm statistics in the last forward pass, a scalar: sum over all
    watched layers, or their ``mean``; 0 if there are none."""
    distances = [m.distance for m in model.modules() if isinstance(m, WatchedBatchNorm)]
    if not distances:
        return torch.zeros((), device=next(model.parameters()).device)
    total = torch.stack(distances).sum()
    return total if reduction == "sum" else total / len(distances)
