"""A table as a benchmark leaves it, with numbers that are drawn."""

import itertools
from hashlib import sha256
from pathlib import Path

import numpy as np

from oneround.research.benchmark.cells import CELLS, CURVES, Cell, CurvePoint, append_cell

ENTRIES = (
    "kang2025", "fedisca", "fedisca, our rule", "dense", "coboosting", "dfkd", "feddf",
    "ensemble", "noise only, T = 20",
)  # fmt: skip
DATA = ("bloodmnist", "dermamnist")
PARTITIONS = ("iid", "dirichlet 0.6", "dirichlet 0.1")
COMPARISONS = ("published", "equal FLOPs")


def cell(**changes) -> Cell:
    """A cell in which only ``changes`` matter; its hash is made from them."""
    values = {
        "data": "a", "partition": "iid", "sites": 3, "seed": 0, "architecture": "resnet18",
        "comparison": "published", "entry": "kang2025", "method": "kang2025", "accuracy": 0.5,
        "balanced_accuracy": 0.5, "auroc": 0.5, "ece": 0.1, "worst_class": 0.2,
        "flops": 10**12, "seconds": 10.0, "peak_memory_bytes": 10**9, "bytes_sent": 10**6,
        "clients": "c", "cell": "", "command": "oneround simulate",
    }  # fmt: skip
    values |= changes
    values["cell"] = (
        values["cell"] or sha256(repr(sorted(changes.items())).encode()).hexdigest()[:16]
    )
    return Cell(**values)


def curve(flops: int, seconds: float, accuracy: float, size: int = 12) -> list[CurvePoint]:
    """Rising to ``accuracy`` along the square of the step."""
    return [
        CurvePoint(
            flops=int(flops * share**2),
            seconds=seconds * share**2,
            accuracy=accuracy * (0.4 + 0.6 * share**0.5),
            balanced_accuracy=accuracy * (0.35 + 0.6 * share**0.5),
        )
        for share in np.linspace(0.15, 1, size)
    ]


def drawn(*, entries=ENTRIES, seeds=2, data=DATA, partitions=PARTITIONS, comparisons=COMPARISONS):
    """Pairs of a cell and its curve; a one-shot entry, ``ensemble``, has no curve."""
    generator = np.random.default_rng(0)
    product = itertools.product(comparisons, data, partitions, range(seeds), entries)
    for comparison, name, partition, seed, entry in product:
        place = ENTRIES.index(entry)
        level = 0.9 - 0.12 * data.index(name) - 0.09 * partitions.index(partition)
        accuracy = level - 0.011 * place + 0.006 * generator.standard_normal()
        equal = comparison == "equal FLOPs"
        flops = int(
            (4e13 if equal else 2e14 * 1.9 ** ((place * 5) % 9 - 4)) * generator.uniform(0.98, 1.02)
        )
        seconds = flops / 4e11 * (1 + 0.3 * (place % 3))
        row = cell(
            data=name, partition=partition, seed=seed, comparison=comparison, entry=entry,
            method=entry.split(",")[0], accuracy=accuracy, balanced_accuracy=accuracy - 0.05,
            auroc=None if name == "dermamnist" else 0.9 + accuracy / 10, ece=0.03 + 0.01 * place,
            worst_class=max(0.0, accuracy - 0.4), flops=flops, seconds=seconds,
            command=f"oneround simulate {name}.npz --method {entry.split(',')[0]} --seed {seed}",
        )  # fmt: skip
        yield row, [] if entry == "ensemble" else curve(flops, seconds, accuracy)


def write(folder: Path, pairs) -> None:
    """Both tables at once; one by one takes long."""
    pairs = list(pairs)
    append_cell(folder, *pairs[0])
    columns = list(Cell.model_fields)
    lines, points = [], []
    for row, line in pairs[1:]:
        values = row.model_dump()
        lines.append(",".join(_quoted(values[name]) for name in columns))
        for p in line:
            numbers = (p.flops, p.seconds, p.accuracy, p.balanced_accuracy)
            points.append(",".join([_quoted(row.cell), *map(str, numbers)]))
    for name, new in ((CELLS, lines), (CURVES, points)):
        path = folder / name
        path.write_text(path.read_text() + "".join(f"{line}\n" for line in new))


def _quoted(value) -> str:
    text = "" if value is None else str(value)
    return '"' + text.replace('"', '""') + '"'
