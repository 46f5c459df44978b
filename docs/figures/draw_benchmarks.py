"""Draw accuracy over FLOPs: ``python docs/figures/draw_benchmarks.py benchmarks/cpu``.

One row for each comparison whose entries have curves, one column for each data set and partition;
means over the seeds that are there, in one common order of colors.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from oneround.research.benchmark.cells import read_cells, read_curves
from oneround.research.benchmark.curves import log_grid, mean_curve
from oneround.research.benchmark.statistics import comparisons, entries, settings

folder = Path(sys.argv[1])
curves, groups = read_curves(folder), comparisons(read_cells(folder))
shown = {name: cells for name, cells in groups.items() if name != "reference"}
places = settings([cell for cells in shown.values() for cell in cells])
names = sorted({entry for cells in shown.values() for entry in entries(cells)})
grid = log_grid(curves.values(), "flops")
figure, axes = plt.subplots(
    len(shown),
    len(places),
    figsize=(2.6 * len(places), 2.5 * len(shown)),
    sharex=True,
    sharey="col",
    squeeze=False,
)
for row, (comparison, cells) in zip(axes, shown.items(), strict=True):
    for ax, place in zip(row, places, strict=True):
        here = [
            cell
            for cell in cells
            if (cell.data, cell.partition, cell.sites) == (place.data, place.partition, place.sites)
        ]
        for number, name in enumerate(names):
            line = mean_curve([c for c in here if c.entry == name], curves, "flops", grid)
            style = ("-", "--", "-.", ":")[number % 4]
            ax.plot(grid, line, style, color=f"C{number}", label=name)
        ax.set_title(f"{place.data}\n{place.partition}, {comparison}", fontsize=8)
        ax.set_xscale("log")
        ax.tick_params(labelsize=7)
        ax.grid(alpha=0.3)
        if np.isfinite([line.get_ydata() for line in ax.lines]).any():
            ax.set_ylim(0, 1)
    row[0].set_ylabel("accuracy", fontsize=8)
for ax in axes[-1]:
    ax.set_xlabel("FLOPs", fontsize=8)
handles, labels = axes[0][0].get_legend_handles_labels()
figure.legend(handles, labels, loc="lower center", ncol=len(names), fontsize=8, frameon=False)
figure.tight_layout(rect=(0, 0.06, 1, 1))
path = Path(__file__).with_name("benchmarks.png")
figure.savefig(path, dpi=90)
Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)
