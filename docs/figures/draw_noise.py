"""Draw every family of structure noise: ``python docs/figures/draw_noise.py``."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from PIL import Image

from oneround.data.structure_noise import FAMILIES

generator = torch.Generator().manual_seed(0)
colored, gray, size = 6, 3, 48
figure, axes = plt.subplots(len(FAMILIES), colored + gray, figsize=(9, 0.86 * len(FAMILIES)))
for row, (name, family) in zip(axes, FAMILIES.items(), strict=True):
    images = [*family(colored, (3, size, size), generator)]
    images += [*family(gray, (1, size, size), generator)]
    for ax, image in zip(row, images, strict=True):
        ax.imshow(image.expand(3, -1, -1).permute(1, 2, 0), interpolation="nearest")
        ax.set_axis_off()
    row[0].text(-0.1, 0.5, name, ha="right", va="center", transform=row[0].transAxes)
figure.subplots_adjust(left=0.16, right=0.995, bottom=0.005, top=0.995, wspace=0.05, hspace=0.05)
path = Path(__file__).with_name("structure_noise.png")
figure.savefig(path, dpi=90)
Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
