"""A picture of what the network sees: a site notices wrongly read images before it trains."""

from __future__ import annotations

import io
import os
import warnings
from typing import TYPE_CHECKING

import torch

from oneround.data import ImageSet
from oneround.data.augment import augment
from oneround.files import write_atomic
from oneround.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 10
"""Images of each class: half of them as read, half augmented."""


def write_contact_sheet(path: str | os.PathLike[str], study: Study, images: ImageSet) -> None:
    """Write a PNG with a row for each class: five images as read, and the same five augmented.

    Args:
        path: PNG file to write; an older one is replaced.
        study: agreement: classes, normalization and augmentation.
        images: training images, pixels in [0, 1].

    Raises:
        OneRoundError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # takes a second to import

    generator = torch.Generator().manual_seed(study.seed)
    classes = len(study.classes)
    figure = Figure(figsize=(COLUMNS + 2, classes + 0.6), layout="constrained")
    figure.suptitle(f"{study.name}: left as read, right as augmented", fontsize=11)
    axes = figure.subplots(classes, COLUMNS, squeeze=False)
    for row, name in enumerate(study.classes):
        indices = torch.nonzero(images.labels == row).flatten()[: COLUMNS // 2]
        shown = images.pixels(indices)
        changed = augment(study.image.normalize(shown), study.training.augment, generator)
        pictures = [*shown, *study.image.denormalize(changed)]
        title = f"{name} ({int((images.labels == row).sum())})"
        axes[row, 0].set_title(title, loc="left", size=9, parse_math=False)
        for column, axis in enumerate(axes[row]):
            axis.axis("off")
            place = column % (COLUMNS // 2)
            if place < len(indices):
                picture = pictures[place + (len(indices) if column >= COLUMNS // 2 else 0)]
                values = picture.permute(1, 2, 0).squeeze(-1).numpy()
                axis.imshow(values, cmap="gray", vmin=0, vmax=1)
    write_figure(path, figure)


def write_figure(path: str | os.PathLike[str], figure: Figure) -> None:
    """Write a matplotlib figure as PNG, atomically."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # shown as an empty box
        figure.savefig(buffer, format="png", dpi=80)
    write_atomic(path, buffer.getvalue())
