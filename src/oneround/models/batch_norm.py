"""BatchNorm layers: finding them, their statistics, and one batch over several processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from oneround.errors import OneRoundError


def is_batch_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether ``module`` is a BatchNorm layer with running statistics."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def batch_norms(model: nn.Module) -> Iterator[_BatchNorm]:
    """The BatchNorm layers of ``model`` with running statistics, in order."""
    return filter(is_batch_norm, model.modules())


def require_batch_norm(model: nn.Module, site: str) -> None:
    """Refuse the client model of ``site`` if it has no statistics of its training images.

    Raises:
        OneRoundError: ``model`` has no BatchNorm layer with running statistics.
    """
    if next(batch_norms(model), None) is None:
        raise OneRoundError(
            f"the client model of {site} has no BatchNorm layer, so it has no statistics of its "
            "training images: image synthesis cannot match any, and noise adaptation has nothing "
            "to update.",
            remedy="Use an architecture with BatchNorm, or a method that needs none: `--method "
            "headfit --set inversion.bn_weight=0`, `--method ensemble` or `--method fedavg`.",
        )


class SynchronizedBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all processes together; with one process, torch's own.

    ``torch.nn.SyncBatchNorm`` does the same, but only on GPUs; this one runs on any device, so
    that two processes on a CPU give the result of one.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Accept any number of dimensions."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize the input, (B, C, …); in training mode, update the running statistics."""
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
    """The sum over all processes; its gradient is the sum of their gradients."""

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
    """Turn every BatchNorm layer of ``model`` into a :class:`SynchronizedBatchNorm`, in place."""
    for layer in batch_norms(model):
        layer.__class__ = SynchronizedBatchNorm


def update_statistics(
    model: nn.Module, batches: Iterable[torch.Tensor], momentum: float | None = None
) -> None:
    """Update the BatchNorm statistics of ``model`` on ``batches``, in place; weights stay.

    Args:
        model: The network; its training mode stays as it is.
        batches: Network inputs, (B, C, H, W), on the device of ``model``.
        momentum: Weight of each new batch, in [0, 1]: after n batches (1 − momentum)ⁿ of the old
            statistics is left. ``None``: the mean over all batches replaces them.
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
