"""Pictures of what the networks saw, for the report."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from safetensors.torch import save

from oneround.distillation.synthesis import ImageBank
from oneround.files import write_atomic
from oneround.runs.run import Run
from oneround.study import ImageSpec

PER_KIND = 8  #: pictures of each class and of each noise family


@dataclass(frozen=True)
class NoisePictures:
    """Structure noise, and mixtures with it, as a method shows them.

    Attributes:
        noise: (N, C, H, W) network input.
        families: (N,) ``int64``, indices into ``names``.
        names: Noise families.
        mixed: (M, C, H, W) network input, pseudo intermediate samples.
        weight: (M,), λ of each: the share of the bank image.
        mix: What the student's samples are mixed with; noise is shown where it is not used, too.
    """

    noise: torch.Tensor
    families: torch.Tensor
    names: tuple[str, ...]
    mixed: torch.Tensor
    weight: torch.Tensor
    mix: str


def write_gallery(
    run: Run, image: ImageSpec, bank: ImageBank, noise: NoisePictures | None = None
) -> None:
    """Write ``RUN/gallery.safetensors``: some bank images and, where a method has them, structure
    noise and mixtures of the two. Nothing is written where a run has no folder.

    Tensors ``bank``, ``noise`` and ``mixed`` are (N, C, H, W) ``uint8``; ``bank_targets`` and
    ``noise_families`` (N,) ``int64``; ``mixed_lambda`` (N,) ``float32``. The metadata entry
    ``about`` is JSON: ``noise_families``, their names, and ``mix``, what the student's samples
    are mixed with.
    """
    if run.path is None or not run.leads:
        return
    finished = bank.finished()
    chosen = torch.cat(
        [
            torch.nonzero(finished.targets == target).flatten()[:PER_KIND]
            for target in sorted(set(finished.targets.tolist()))
        ]
    )
    tensors = {
        "bank": _pixels(image, finished.images[chosen].float()),
        "bank_targets": finished.targets[chosen],
    }
    about: dict[str, object] = {"mix": "none"}
    if noise is not None:
        about = {"noise_families": list(noise.names), "mix": noise.mix}
        order = noise.weight.argsort(descending=True)
        tensors |= {
            "noise": _pixels(image, noise.noise),
            "noise_families": noise.families,
            "mixed": _pixels(image, noise.mixed[order]),
            "mixed_lambda": noise.weight[order],
        }
    metadata = {"about": json.dumps(about)}  # one entry: the order of several is not fixed
    write_atomic(run.path / "gallery.safetensors", save(tensors, metadata))


def _pixels(image: ImageSpec, inputs: torch.Tensor) -> torch.Tensor:
    return (image.denormalize(inputs) * 255).round().to(torch.uint8).contiguous()
