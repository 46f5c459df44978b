"""Pictures of what the networks saw, for the report."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save

from oneround.distillation import Samples
from oneround.files import write_atomic
from oneround.noise import StructureNoise
from oneround.study import ImageSpec
from oneround.synthesis import ImageBank


def write_gallery(
    folder: Path,
    image: ImageSpec,
    bank: ImageBank,
    noise: StructureNoise,
    samples: Samples,
    per_kind: int = 8,
) -> None:
    """Write ``gallery.safetensors``: some bank images and, where there are, mixed samples.

    Tensors ``bank``, ``noise`` and ``mixed`` are (N, C, H, W) ``uint8``; ``bank_targets`` and
    ``noise_families`` (N,) ``int64``; ``mixed_lambda`` (N,) ``float32``. The metadata name the
    noise families.
    """
    generator = torch.Generator().manual_seed(0)
    finished = bank.finished()
    chosen = torch.cat(
        [
            torch.nonzero(finished.targets == target).flatten()[:per_kind]
            for target in sorted(set(finished.targets.tolist()))
        ]
    )
    tensors = {
        "bank": _pixels(image, finished.images[chosen].float()),
        "bank_targets": finished.targets[chosen],
    }
    families = noise.options.families
    if samples.options.mix == "noise":
        drawn, family = noise.sample_labeled(4 * per_kind * len(families), generator)
        mixed, weight = samples.draw(2 * per_kind, generator)
        order = weight.argsort(descending=True)
        tensors |= {
            "noise": _pixels(image, drawn),
            "noise_families": family,
            "mixed": _pixels(image, mixed[order]),
            "mixed_lambda": weight[order],
        }
    metadata = {"noise_families": json.dumps(list(families))}
    write_atomic(folder / "gallery.safetensors", save(tensors, metadata))


def _pixels(image: ImageSpec, inputs: torch.Tensor) -> torch.Tensor:
    return (image.denormalize(inputs) * 255).round().to(torch.uint8).contiguous()
