"""What a client model answers to a few fixed images that nobody took: finite numbers, or not.

Weights can be finite and outputs still be NaN or infinite, for all images or for some. Such a model
would stop every method much later, where nobody sees whose it is. So it is asked when it is read.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from oneround import models
from oneround.data.structure_noise import NoiseOptions, StructureNoise
from oneround.errors import Problem
from oneround.models.batch_norm import batch_norms, update_statistics
from oneround.study import ImageSpec
from oneround.submission.container import ASK_AGAIN
from oneround.submission.manifest import Manifest

LARGEST = 1e5
"""Largest magnitude of an output: 400 times that of any client model that we measured."""

LEAST_SPREAD = 1e-6
"""Smallest spread of the outputs over the probes, relative to their size: below a ten-thousandth of
that of any client model that we measured."""

SMALL = 5 * 10**10
"""Product of parameters and pixels up to which a network is asked without measuring it first."""

MOST_FLOPS = 2 * 10**11
"""FLOPs that the probes of one file may cost: some seconds on a CPU."""

MOST_VALUES = 2**28
"""Largest layer, in values for one probe: 1 GiB."""


@lru_cache(maxsize=4)
def probes(image: ImageSpec) -> torch.Tensor:
    """The probes as network input, (6, C, H, W): black, gray, white, Gaussian noise and two of
    structure noise; always the same."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, *image.shape)
    noise = (0.5 + 0.25 * torch.randn(1, *image.shape, generator=generator)).clamp(0, 1)
    structure = StructureNoise(image, NoiseOptions(families=("spectrum",), contrast=1.0))
    return torch.cat([image.normalize(torch.cat([flat, noise])), structure.sample(2, generator)])


def check_outputs(model: nn.Module, manifest: Manifest) -> Iterable[Problem]:
    """Problems of the outputs of a client model, (B, classes), for :func:`probes`.

    Args:
        model: client model in eval mode, on the CPU.
        manifest: its manifest.
    """
    x = probes(manifest.image)
    small = sum(p.numel() for p in model.parameters()) * x[0, 0].numel() <= SMALL
    affordable = len(x) if small else _affordable(manifest)
    if not affordable:
        what = f"the network of {manifest.site} is too large to be asked for its outputs here"
        why = f"The probes may cost {MOST_FLOPS:.0e} FLOPs and {MOST_VALUES:.0e} values."
        remedy = "Look at its validation metrics before you trust it."
        yield Problem("outputs-not-checked", what, why, remedy, fatal=False)
        return
    x = x[-affordable:]
    try:
        with torch.no_grad():
            outputs = model(x) if small else torch.cat([model(one.unsqueeze(0)) for one in x])
            again = _with_statistics_of(x, model)(x) if small else outputs
    except Exception as error:  # anything: it is somebody else's network
        what = f"the network does not take the study's images ({str(error)[:200]!r})"
        why = "Its arguments do not fit them."
        yield Problem("architecture-arguments", what, why, ASK_AGAIN)
        return
    largest = torch.cat([outputs, again]).abs().max().item()
    spread = (outputs.amax(0) - outputs.amin(0)).max().item()
    if not largest <= LARGEST:  # NaN is not either
        yield Problem(
            "outputs-not-finite",
            f"the client model of {manifest.site} answers plain images with "
            + (f"outputs of {largest:.0e}" if largest < float("inf") else "NaN or infinity"),
            f"No client model that was trained on images goes beyond {LARGEST:.0e}; this one would "
            "stop or dominate every method.",
            f"Ask {manifest.site} to train again, or leave it out: --exclude {manifest.site}.",
        )
    elif len(x) > 1 and spread <= LEAST_SPREAD * (1 + largest):
        yield Problem(
            "outputs-constant",
            f"the client model of {manifest.site} gives the same answer to every image",
            "It has learned nothing, or its weights or BatchNorm statistics were changed.",
            f"Ask {manifest.site} to train again, or leave it out: --exclude {manifest.site}.",
        )


def _with_statistics_of(x: torch.Tensor, model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose BatchNorm layers normalize by ``x``, as in many methods."""
    if next(batch_norms(model), None) is None:
        return model
    copied = copy.deepcopy(model)
    update_statistics(copied, [x])
    return copied


def _affordable(manifest: Manifest) -> int:
    """Number of probes that the network can be asked for at bounded cost, found without computing:
    on the meta device."""
    largest = 0

    def note(*call: object) -> None:
        nonlocal largest
        if isinstance(call[-1], torch.Tensor):
            largest = max(largest, call[-1].numel())

    try:
        with torch.device("meta"):
            model = models.build(manifest.architecture, manifest.image, len(manifest.classes))
            for layer in model.modules():
                layer.register_forward_hook(note)
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                model.eval()(torch.empty(1, *manifest.image.shape))
    except Exception:  # anything: it is somebody else's network
        return 0
    if largest > MOST_VALUES:
        return 0
    return int(min(6, MOST_FLOPS // max(1, counter.get_total_flops())))
