"""Pictures of what the networks saw, for the report."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save

from oneround.data.structure_noise import StructureNoise
from oneround.distillation.synthesis import ImageBank
from oneround.distillation.training import Samples
from oneround.files import write_atomic
from oneround.runs.stage import Stage
from oneround.study import ImageSpec


def write_gallery(
    folder: Path,
    image: ImageSpec,
    bank: ImageBank,
    noise: StructureNoise | None = None,
    samples: Samples | None = None,
    per_kind: int = 8,
) -> None:
    """Write ``gallery.safetensors``: some bank images and, where a method has them, structure
    noise and mixtures of the two.

    Tensors ``bank``, ``noise`` and ``mixed`` are (N, C, H, W) ``uint8``; ``bank_targets`` and
    ``noise_families`` (N,) ``int64``; ``mixed_lambda`` (N,) ``float32``. The metadata entry
    ``about`` is JSON: ``noise_families``, their names, and ``mix``, what the student's samples
    are mixed with (``distillation.mix``): noise is shown, too, where it is not used.
    """
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
    about: dict[str, object] = {"mix": "none"}
    if noise is not None and samples is not None:
        about = {"noise_families": list(noise.options.families), "mix": samples.options.mix}
        tensors |= _noise(image, bank, noise, samples, per_kind)
    metadata = {"about": json.dumps(about)}  # one entry: the order of several is not fixed
    write_atomic(folder / "gallery.safetensors", save(tensors, metadata))


def _noise(
    image: ImageSpec, bank: ImageBank, noise: StructureNoise, samples: Samples, per_kind: int
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    family = torch.arange(len(noise.options.families)).repeat_interleave(per_kind)
    if samples.options.mix != "noise":  # show what could have been, and say so
        options = samples.options.model_copy(update={"mix": "noise", "noise_pool": 64})
        samples = Samples(bank, noise, options, Stage("gallery"))
    mixed, weight = samples.draw(2 * per_kind, generator)
    order = weight.argsort(descending=True)
    return {
        "noise": _pixels(image, noise.sample_of(family, generator)),
        "noise_families": family,
        "mixed": _pixels(image, mixed[order]),
        "mixed_lambda": weight[order],
    }


def _pixels(image: ImageSpec, inputs: torch.Tensor) -> torch.Tensor:
    return (image.denormalize(inputs) * 255).round().to(torch.uint8).contiguous()
