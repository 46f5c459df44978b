"""Means, paired differences, ranks and Pareto fronts over the cells of a benchmark.

Every function takes the cells of one comparison, as :func:`comparisons` returns them. Of several
cells with the same setting, entry and seed (run again with another version, say) the last one
counts, and of the cells of one setting and seed, those with the client models of the last one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from oneround.research.benchmark.cells import Cell

Measure = Literal[
    "accuracy", "balanced_accuracy", "auroc", "ece", "worst_class",
    "flops", "seconds", "peak_memory_bytes", "bytes_sent",
]  # fmt: skip


class Setting(NamedTuple):
    """Data, partition, number of sites and architecture: all that an entry runs on but the seed."""

    data: str
    partition: str
    sites: int
    architecture: str


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (``None`` for one value) of ``count`` values."""

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Overall:
    """Means over ``settings``: those in which every entry has a value."""

    entries: dict[str, Spread]
    settings: list[Setting]


@dataclass(frozen=True)
class Difference:
    """One entry minus another over pairs of equal setting and seed.

    Attributes:
        mean: Mean difference.
        interval: 95 % confidence interval of the mean (Student's t); ``None`` for one pair.
        pairs: Number of pairs.
        wins: Number of pairs with a positive difference.
        ties: Number of pairs with a difference of zero.
    """

    mean: float
    interval: tuple[float, float] | None
    pairs: int
    wins: int
    ties: int


def comparisons(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """The cells that count, by comparison; see the top of this module."""
    last: dict[tuple[object, ...], Cell] = {}
    clients: dict[tuple[Setting, int], str] = {}
    for cell in cells:
        key = (cell.comparison, setting_of(cell), cell.entry, cell.seed)
        last.pop(key, None)
        last[key] = cell
        clients[setting_of(cell), cell.seed] = cell.clients
    groups: dict[str, list[Cell]] = {}
    for cell in last.values():
        if cell.clients == clients[setting_of(cell), cell.seed]:
            groups.setdefault(cell.comparison, []).append(cell)
    return dict(sorted(groups.items()))


def setting_of(cell: Cell) -> Setting:
    """The setting of a cell."""
    return Setting(cell.data, cell.partition, cell.sites, cell.architecture)


def settings(cells: Iterable[Cell]) -> list[Setting]:
    """All settings, sorted."""
    return sorted({setting_of(cell) for cell in cells})


def entries(cells: Iterable[Cell]) -> list[str]:
    """All entries, sorted, so that their order does not depend on which cell finished first."""
    return sorted({cell.entry for cell in cells})


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of at least one value."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), deviation, len(values))


def by_setting(cells: Iterable[Cell], measure: Measure) -> dict[Setting, dict[str, Spread]]:
    """Mean over seeds for each setting and entry; cells without a value are left out."""
    values: dict[Setting, dict[str, list[float]]] = {}
    for (setting, entry, _), value in _values(cells, measure).items():
        values.setdefault(setting, {}).setdefault(entry, []).append(value)
    return {s: {e: spread(v) for e, v in row.items()} for s, row in sorted(values.items())}


def overall(cells: Sequence[Cell], measure: Measure) -> Overall:
    """Mean over seeds, then over the settings in which every entry has a value.

    The deviation is that of the mean over settings between seeds, over the seeds that the entry
    has in all of these settings.
    """
    names = entries(cells)
    table = {s: row for s, row in by_setting(cells, measure).items() if len(row) == len(names)}
    if not table:
        return Overall({}, [])
    values = _values(cells, measure)
    result = {}
    for name in names:
        mean = float(np.mean([row[name].mean for row in table.values()]))
        seeds = _seed_means(values, name, list(table))
        deviation = float(np.std(seeds, ddof=1)) if len(seeds) > 1 else None
        result[name] = Spread(mean, deviation, len(seeds))
    return Overall(result, list(table))


def paired(cells: Iterable[Cell], entry: str, other: str, measure: Measure) -> Difference | None:
    """``entry`` minus ``other`` over all pairs that have both values; ``None`` without a pair."""
    values = _values(cells, measure)
    differences = [
        value - values[setting, other, seed]
        for (setting, name, seed), value in values.items()
        if name == entry and (setting, other, seed) in values
    ]
    if not differences:
        return None
    whole = spread(differences)
    return Difference(
        mean=whole.mean,
        interval=_interval(whole),
        pairs=whole.count,
        wins=sum(value > 0 for value in differences),
        ties=sum(value == 0 for value in differences),
    )


def ranks(cells: Sequence[Cell]) -> dict[Setting, dict[str, float]]:
    """Rank of each entry by mean balanced accuracy, in each setting in which all have a cell.

    1 is the best; ties share the mean of their ranks.
    """
    names = entries(cells)
    result = {}
    for setting, row in by_setting(cells, "balanced_accuracy").items():
        if len(row) == len(names):
            places = stats.rankdata([-row[name].mean for name in names])
            result[setting] = dict(zip(names, map(float, places), strict=True))
    return result


def mean_ranks(table: Mapping[Setting, Mapping[str, float]]) -> dict[str, float]:
    """Mean rank of each entry over the settings of :func:`ranks`."""
    names = next(iter(table.values()), {})
    return {name: float(np.mean([row[name] for row in table.values()])) for name in names}


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names on the Pareto front of (cost, accuracy), the cheapest first.

    On it are those for which no other is at least as cheap and as accurate, and better in one of
    the two.
    """
    order = sorted(points, key=lambda name: (points[name][0], -points[name][1]))
    front: list[str] = []
    for name in order:
        if not front or points[name][1] > points[front[-1]][1] or points[name] == points[front[-1]]:
            front.append(name)
    return front


_Key = tuple[Setting, str, int]


def _values(cells: Iterable[Cell], measure: Measure) -> dict[_Key, float]:
    return {
        (setting_of(cell), cell.entry, cell.seed): float(value)
        for cell in cells
        if (value := getattr(cell, measure)) is not None
    }


def _seed_means(values: Mapping[_Key, float], entry: str, places: list[Setting]) -> list[float]:
    """The mean over ``places`` for each seed that has them all."""
    seeds = sorted({seed for _, name, seed in values if name == entry})
    rows = [[values.get((place, entry, seed)) for place in places] for seed in seeds]
    return [float(np.mean([v for v in row if v is not None])) for row in rows if None not in row]


def _interval(whole: Spread) -> tuple[float, float] | None:
    if whole.deviation is None:
        return None
    reach = stats.t.ppf(0.975, whole.count - 1) * whole.deviation / whole.count**0.5
    return float(whole.mean - reach), float(whole.mean + reach)
