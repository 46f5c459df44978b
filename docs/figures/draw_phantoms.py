"""Draw examples of every phantom class: ``python docs/figures/draw_phantoms.py``."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from oneround.data.phantoms import PHANTOM_CLASSES, draw_cells

generator = torch.Generator().manual_seed(0)
columns = 9
figure, axes = plt.subplots(len(PHANTOM_CLASSES), columns, figsize=(9, 0.78 * len(PHANTOM_CLASSES)))
for label, (row, name) in enumerate(zip(axes, PHANTOM_CLASSES, strict=True)):
    images = draw_cells(torch.full((columns,), label), 32, generator)
    for ax, image in zip(row, images, strict=True):
        ax.imshow(image.permute(1, 2, 0), interpolation="nearest")
        ax.set_axis_off()
    row[0].text(-0.1, 0.5, name, ha="right", va="center", transform=row[0].transAxes)
figure.subplots_adjust(left=0.23, right=0.995, bottom=0.005, top=0.995, wspace=0.05, hspace=0.05)
figure.savefig(Path(__file__).with_name("phantoms.png"), dpi=100)
