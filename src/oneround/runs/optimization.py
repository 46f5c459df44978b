"""The optimizer and the learning-rate schedules of client training and of distillation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch


def make_optimizer(
    parameters: Iterable[torch.Tensor],
    *,
    learning_rate: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    kind: Literal["sgd", "adam"] = "sgd",
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or Adam.

    Args:
        parameters: Weights, or pixels, to optimize.
        learning_rate: Learning rate of the first step; :func:`set_learning_rate` changes it.
        momentum: Momentum of SGD, in [0, 1); 0: plain SGD.
        weight_decay: Weight decay of SGD or Adam, at least 0.
        kind: ``sgd`` or ``adam``.
        betas: Decays of Adam's moments.
    """
    if kind == "adam":
        return torch.optim.Adam(
            parameters, lr=learning_rate, betas=betas, weight_decay=weight_decay
        )
    return torch.optim.SGD(
        parameters,
        lr=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        nesterov=momentum > 0,
    )


def learning_rate(schedule: str, peak: float, position: float, steps: int) -> float:
    """Learning rate of the step that begins at ``position``, in [0, ``steps``].

    ``one-cycle``: from peak/25 up to ``peak`` for 30 % of the steps, then down to almost zero,
    both along a cosine (Smith and Topin, 2019; as ``torch.optim.lr_scheduler.OneCycleLR`` over
    ``steps + 1``). ``cosine``: from ``peak`` down to zero. ``step``: ``peak``, a tenth of it from
    half of the steps on, and a hundredth from three quarters on. ``constant``: ``peak``.
    """
    if schedule == "constant":
        return peak
    if schedule == "cosine":
        return peak * (1 + math.cos(math.pi * position / steps)) / 2
    if schedule == "step":
        return peak * (1.0 if position < steps / 2 else 0.1 if position < steps * 3 / 4 else 0.01)
    top = 0.3 * (steps + 1) - 1
    start, end, share = peak / 25, peak, position / top if top > 0 else 1.0
    if position > top:
        start, end, share = peak, peak / 25 / 1e4, (position - top) / (steps - top)
    return end + (start - end) / 2 * (math.cos(math.pi * share) + 1)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the next step of ``optimizer`` use ``rate``."""
    for group in optimizer.param_groups:
        group["lr"] = rate
