"""The image bank: synthesized images with their targets, on disk, used again and again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
