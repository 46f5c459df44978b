"""Random changes of images that keep their class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def augment(x: torch.Tensor, kinds: Sequence[str], generator: torch.Generator) -> torch.Tensor:
    """A batch with random changes that keep the class, sampled for each image.

    One affine map per image covers ``flip`` (left–right), ``shift`` (up to 8 % of the side) and
    ``rotate`` (up to 15°), with reflection at the border; ``intensity`` scales the values by up
    to 10 % and shifts them by up to 0.1. The whole batch is changed at once: transforms image by
    image cost more than the training step of a small network.

    Args:
        x: Network input or pixels, (B, C, H, W).
        kinds: Any of ``flip``, ``shift``, ``rotate``, ``intensity``.
        generator: Source of randomness, on the CPU.

    Returns:
        The changed images, (B, C, H, W).
    """
    count = len(x)
    if count and {"flip", "shift", "rotate"} & set(kinds):
        angle = torch.zeros(count)
        if "rotate" in kinds:
            angle = (torch.rand(count, generator=generator) * 2 - 1) * torch.pi / 12
        mirror = torch.ones(count)
        if "flip" in kinds:
            mirror = torch.randint(0, 2, (count,), generator=generator) * 2.0 - 1
        shift = torch.zeros(count, 2)
        if "shift" in kinds:
            shift = (torch.rand(count, 2, generator=generator) * 2 - 1) * 0.16
        cos, sin = angle.cos(), angle.sin()
        rows = torch.stack([mirror * cos, -sin, shift[:, 0], mirror * sin, cos, shift[:, 1]], 1)
        maps = rows.view(count, 2, 3).to(x.device, x.dtype)
        grid = nn.functional.affine_grid(maps, list(x.shape), align_corners=False)
        x = nn.functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    if "intensity" in kinds:
        change = (torch.rand(count, 2, 1, 1, generator=generator) * 2 - 1).to(x.device, x.dtype)
        x = x * (1 + 0.1 * change[:, :1]) + 0.1 * change[:, 1:]
    return x
