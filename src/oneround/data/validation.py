"""Divide images into training and validation images, and find what is on both sides of a split."""

from __future__ import annotations

import numpy as np
import torch

from oneround.data.image_set import ImageSet

TOO_GOOD = "metrics on them are too good"


def hold_out(
    data: ImageSet, fraction: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of training and validation images, each sorted.

    Images of one patient stay together. Classes are divided in the same proportion: a class whose
    images are of two patients or more is on both sides (rare classes first), one of a single
    patient stays in training. Where nothing can be held out, the validation images are none.

    Args:
        data: Images of the site; without patients, each image is one.
        fraction: Share of the images of each class to hold out, in (0, 1).
        generator: Order in which patients are considered.
    """
    patients = torch.arange(len(data)) if data.patients is None else data.patients
    groups = torch.from_numpy(np.unique(patients.numpy(), return_inverse=True)[1])
    size = torch.zeros(int(groups.max()) + 1, len(data.classes), dtype=torch.int64)
    size.index_put_((groups, data.labels), torch.ones_like(groups), accumulate=True)
    order = torch.randperm(len(size), generator=generator)
    images, left, held = size.sum(0), (size > 0).sum(0), torch.zeros_like(size[0])
    wanted = _shares(images, fraction)
    chosen = torch.zeros(len(size), dtype=torch.bool)
    for c in images.argsort(stable=True).tolist():
        for g in order[size[order, c] > 0].tolist():
            if held[c] >= wanted[c]:
                break
            if not chosen[g] and (left[size[g] > 0] > 1).all():  # no class loses its last patient
                chosen[g] = True
                left -= (size[g] > 0).long()
                held += size[g]
    validation = chosen[groups]
    return (~validation).nonzero().flatten(), validation.nonzero().flatten()


def _shares(images: torch.Tensor, fraction: float) -> torch.Tensor:
    """Number of images of each class to hold out: largest remainders, and one at least."""
    exact = images * fraction
    whole = exact.floor()
    more = round(float(exact.sum())) - int(whole.sum())
    whole[(exact - whole).argsort(descending=True, stable=True)[:more]] += 1
    return whole.clamp_min(1)


def on_both_sides(train: ImageSet, other: ImageSet, name: str) -> list[str]:
    """A line for each way in which other images are not independent of the training images.

    Args:
        train: Training images.
        other: Images that metrics are computed on.
        name: What they are called, such as ``validation``.
    """
    lines, of = [], f"of {len(other)} {name} images are"
    if train.patients is not None and other.patients is not None:
        shared = int(torch.isin(other.patients, train.patients).sum())
        if shared:
            lines.append(f"{shared} {of} of patients who have training images, too: {TOO_GOOD}")
    seen = set(train.fingerprints())
    if equal := sum(fingerprint in seen for fingerprint in other.fingerprints()):
        lines.append(f"{equal} {of} equal to training images, pixel for pixel: {TOO_GOOD}")
    return lines
