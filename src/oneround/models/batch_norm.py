"""BatchNorm layers: which there are, their statistics, and one batch over several processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from oneround.errors import OneRoundError


def is_batch_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether ``module`` is a BatchNorm layer that keeps running statistics."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def batch_norms(model: nn.Module) -> Iterator[_BatchNorm]:
    """The BatchNorm layers of ``model`` that keep running statistics, in order."""
    return filter(is_batch_norm, model.modules())


def require_batch_norm(model: nn.Module, site: str) -> None:
    """Refuse a network whose training images left no statistics to invert.

    Raises:
        OneRoundError: ``model`` has no BatchNorm layer.
    """
    if next(batch_norms(model), None) is None:
        raise OneRoundError(
            f"the client model of {site} has no BatchNorm layer, so it keeps no statistics of "
            "its training images and noise adaptation has nothing to update.",
            remedy="Use an architecture with BatchNorm, or do without: `--method oneround --set "
            "inversion.bn_weight=0`, `--method ensemble` or `--method fedavg`.",
        )


class SynchronizedBatchNorm(_BatchNorm):
    """BatchNorm whose batch is that of all processes together; of one, torch's own.

    ``torch.nn.SyncBatchNorm`` does the same on GPUs alone; this one runs on any device, so that
    two processes on a CPU give what one gives.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Any number of dimensions will do."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The normalized input, (B, C, …); running statistics follow in training mode."""
        batch_statistics = self.training or self.running_mean is None
        several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        if not (batch_statistics and several):
            return super().forward(input)
        others, world = [0, *range(2, input.ndim)], torch.distributed.get_world_size()
        wide = input.float()  # half a number has no room for the difference of two squares
        sums = torch.stack([wide.mean(others), wide.square().mean(others)])
        total = _SumOverProcesses.apply(sums)  # type: ignore[no-untyped-call]
        mean, square = total / world  # parts are of equal size
        variance = square - mean.square()
        if self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            count = input.numel() // input.shape[1] * world
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                share = self.momentum
                if share is None:  # the mean over all batches
                    share = 1 / int(self.num_batches_tracked)
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * count / (count - 1), share)
        scale = (variance + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        per_channel = (1, -1, *(1,) * (input.ndim - 2))
        normal = torch.addcmul(shift.view(per_channel), wide, scale.view(per_channel))
        return normal.to(input.dtype)


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        torch.distributed.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous().clone()
        torch.distributed.all_reduce(gradient)
        return gradient


def synchronize_batch_norms(model: nn.Module) -> None:
    """Make every BatchNorm layer of ``model`` a :class:`SynchronizedBatchNorm`, in place."""
    for layer in batch_norms(model):
        layer.__class__ = SynchronizedBatchNorm


def update_statistics(
    model: nn.Module, batches: Iterable[torch.Tensor], momentum: float | None = None
) -> None:
    """Move the BatchNorm statistics of ``model`` to those of ``batches``; weights stay.

    Args:
        batches: network inputs, (B, C, H, W), on the device of ``model``.
        momentum: after n batches (1 − momentum)ⁿ of the old statistics is left; ``None``:
            replace them by the mean over all batches.
    """
    training, layers = model.training, list(batch_norms(model))
    model.eval()
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.train()
        layer.momentum = momentum
        if momentum is None:
            layer.reset_running_stats()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for layer, old in zip(layers, before, strict=True):
        layer.momentum = old
    model.train(training)
