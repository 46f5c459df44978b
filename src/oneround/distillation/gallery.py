"""Example images of a run for its report: bank images, structure noise and their mixtures."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from safetensors.torch import save

from oneround.distillation.synthesis import ImageBank
from oneround.files import write_atomic
from oneround.runs.run import Run
from oneround.study import ImageSpec

PER_KIND = 8  #: images of each class and of each noise family


@dataclass(frozen=True)
class NoisePictures:
    """Examples of structure noise and of pseudo intermediate samples.

    Attributes:
        noise: Structure noise as network input, (N, C, H, W).
        families: Family of each noise image as an index into ``names``, (N,) ``int64``.
        names: Names of the noise families.
        mixed: Pseudo intermediate samples as network input, (M, C, H, W).
        weight: Share λ of the bank image in each of them, (M,) in [0, 1].
        mix: ``noise``, ``bank`` or ``none``: what bank images are mixed with in this run. The
            examples are there also if the run does not use noise.
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
    """Write ``RUN/gallery.safetensors``: examples of bank images and, if the method has them, of
    structure noise and pseudo intermediate samples. Without a RUN folder, nothing is written.

    The tensors ``bank``, ``noise`` and ``mixed`` are (N, C, H, W) ``uint8`` in [0, 255];
    ``bank_targets`` and ``noise_families`` are (N,) ``int64``; ``mixed_lambda`` is (N,)
    ``float32`` in [0, 1]. The metadata entry ``about`` is JSON with ``noise_families``, their
    names, and ``mix``, what bank images are mixed with.

    Args:
        run: The run.
        image: Normalization of the images.
        bank: The image bank.
        noise: Examples with structure noise, if the method has them.
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
