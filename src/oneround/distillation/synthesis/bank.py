"""Synthesized images with their targets, used again and again: a bank that is made once and lies
on disk, or a pool that grows while the student learns and lies in its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from oneround.files import write_atomic


@dataclass(frozen=True)
class ImageBank:
    """Synthesized images.

    Attributes:
        images: (N, C, H, W) network input, ``float16``.
        targets: (N,) ``int64``, the class each image was made for.
        progress: (N,) step/steps at which the image was taken from its trajectory; 1: the end.
    """

    images: torch.Tensor
    targets: torch.Tensor
    progress: torch.Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """``count`` images drawn with replacement, (count, C, H, W) ``float32``."""
        return self.images[torch.randint(len(self), (count,), generator=generator)].float()

    def finished(self) -> ImageBank:
        """Only the images at the end of their trajectories."""
        end = self.progress == 1
        return ImageBank(self.images[end], self.targets[end], self.progress[end])

    @staticmethod
    def join(shards: list[ImageBank]) -> ImageBank:
        """One bank of several."""
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
        """Read what :meth:`write` wrote."""
        return ImageBank(**load(path.read_bytes()))


class Pool:
    """Synthesized images that grow in number; a part of a checkpoint.

    Attributes:
        images: (N, C, H, W) network input, ``float16``, on the CPU.
        targets: (N,) ``int64``, the class each image was made for.
    """

    def __init__(self) -> None:
        self.images = torch.empty(0, dtype=torch.float16)
        self.targets = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.targets)

    def add(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        """Take in further images, (B, C, H, W), with their targets, (B,)."""
        images, targets = images.detach().half().cpu().contiguous(), targets.cpu()
        self.images = torch.cat([self.images, images]) if len(self) else images
        self.targets = torch.cat([self.targets, targets])

    def batches(
        self, size: int, generator: torch.Generator, count: int | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Shuffled batches of equal size: ``float32`` images and their targets.

        Args:
            size: of a batch; all images if there are fewer. What is left of a pass is left out.
            generator: of the order.
            count: how many batches of a pool that is not empty, in as many passes as they take;
                by default one pass.
        """
        per_pass = self.batches_in_pass(size)
        for number in range(per_pass if count is None else count):
            place = number % per_pass
            if place == 0:
                order = torch.randperm(len(self), generator=generator)
            chosen = order[place * size : (place + 1) * size]
            yield self.images[chosen].float(), self.targets[chosen]

    def batches_in_pass(self, size: int) -> int:
        """How many batches of ``size`` one pass has."""
        return max(1, len(self) // size) if len(self) else 0

    def state_dict(self) -> dict[str, Any]:
        """All images and targets."""
        return {"images": self.images, "targets": self.targets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self.images, self.targets = state["images"], state["targets"]
