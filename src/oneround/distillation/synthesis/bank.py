"""Synthesized images with their targets, kept and used again: an image bank, made once and kept on
disk, or a pool that grows while the student learns and is kept in its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from oneround.errors import OneRoundError
from oneround.files import write_atomic


@dataclass(frozen=True)
class ImageBank:
    """Synthesized images with their targets, made once.

    Attributes:
        images: Network input, (N, C, H, W) ``float16``.
        targets: Class that each image was made for, (N,) ``int64``.
        progress: Point of its trajectory, step/steps, at which each image was taken, (N,) in
            (0, 1]; 1: the end.
    """

    images: torch.Tensor
    targets: torch.Tensor
    progress: torch.Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """``count`` images sampled with replacement, (count, C, H, W) ``float32``."""
        return self.images[torch.randint(len(self), (count,), generator=generator)].float()

    def finished(self) -> ImageBank:
        """The images at the end of their trajectories."""
        end = self.progress == 1
        return ImageBank(self.images[end], self.targets[end], self.progress[end])

    @staticmethod
    def join(shards: list[ImageBank]) -> ImageBank:
        """Several banks as one."""
        return ImageBank(
            torch.cat([shard.images for shard in shards]),
            torch.cat([shard.targets for shard in shards]),
            torch.cat([shard.progress for shard in shards]),
        )

    def write(self, path: Path) -> None:
        """Write as safetensors, atomically."""
        write_atomic(path, save({k: v.contiguous() for k, v in vars(self).items()}))

    @staticmethod
    def read(path: Path) -> ImageBank:
        """Read a file of :meth:`write`."""
        try:
            return ImageBank(**load(path.read_bytes()))
        except (OSError, SafetensorError, TypeError) as error:
            raise OneRoundError(
                "this part of the image bank is damaged.",
                file=path,
                remedy="Delete it and run the same command again; the other parts are kept.",
            ) from error


class Pool:
    """Synthesized images that grow in number, as part of a checkpoint.

    Attributes:
        images: Network input, (N, C, H, W) ``float16``, on the CPU.
        targets: Class that each image was made for, (N,) ``int64``.
    """

    def __init__(self) -> None:
        self.images = torch.empty(0, dtype=torch.float16)
        self.targets = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.targets)

    def add(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        """Add images, (B, C, H, W), with their targets, (B,)."""
        images, targets = images.detach().half().cpu().contiguous(), targets.cpu()
        self.images = torch.cat([self.images, images]) if len(self) else images
        self.targets = torch.cat([self.targets, targets])

    def batches(
        self, size: int, generator: torch.Generator, count: int | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Shuffled batches of equal size.

        Args:
            size: Images in each batch; if the pool has fewer, all of them. Images at the end of a
                pass that do not fill a batch are left out.
            generator: Source of the random order.
            count: Number of batches, in as many passes as they take, of a pool that is not empty;
                ``None``: one pass.

        Yields:
            Images, (B, C, H, W) ``float32``, and their targets, (B,) ``int64``.
        """
        per_pass = self.batches_in_pass(size)
        for number in range(per_pass if count is None else count):
            place = number % per_pass
            if place == 0:
                order = torch.randperm(len(self), generator=generator)
            chosen = order[place * size : (place + 1) * size]
            yield self.images[chosen].float(), self.targets[chosen]

    def batches_in_pass(self, size: int) -> int:
        """Number of batches of ``size`` in one pass."""
        return max(1, len(self) // size) if len(self) else 0

    def state_dict(self) -> dict[str, Any]:
        """All images and targets."""
        return {"images": self.images, "targets": self.targets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned."""
        self.images, self.targets = state["images"], state["targets"]
