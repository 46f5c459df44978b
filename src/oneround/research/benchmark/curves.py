"""Curves of accuracy over cost: those of cells on a common grid, and their mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from oneround.research.benchmark.cells import Cell, CurvePoint
from oneround.research.benchmark.statistics import Setting, setting_of

Spent = Literal["flops", "seconds"]


def log_grid(curves: Iterable[Sequence[CurvePoint]], spent: Spent, size: int = 60) -> NDArray[Any]:
    """Costs at equal ratios from the smallest to the largest positive cost, (size,).

    Empty if no point has a positive cost.
    """
    costs = [c for curve in curves for point in curve if (c := getattr(point, spent)) > 0]
    return np.geomspace(min(costs), max(costs), size) if costs else np.empty(0)


def at_cost(curve: Sequence[CurvePoint], spent: Spent, grid: NDArray[Any]) -> NDArray[Any]:
    """Accuracy at each cost of ``grid``: that of the last point at or below this cost.

    NaN before the first point; after the last one, its accuracy.
    """
    order = sorted(curve, key=lambda point: float(getattr(point, spent)))
    costs = np.array([getattr(point, spent) for point in order], dtype=float)
    accuracy = np.array([math.nan, *(point.accuracy for point in order)])
    result: NDArray[Any] = accuracy[np.searchsorted(costs, grid * (1 + 1e-12), side="right")]
    return result


def mean_curve(
    cells: Iterable[Cell],
    curves: Mapping[str, Sequence[CurvePoint]],
    spent: Spent,
    grid: NDArray[Any],
) -> NDArray[Any]:
    """Mean accuracy of one entry at each cost of ``grid``, over seeds, then over settings.

    NaN where any curve has no point yet. Cells without a curve are left out.
    """
    rows: dict[Setting, list[NDArray[Any]]] = {}
    for cell in cells:
        if curves.get(cell.cell):
            line = at_cost(curves[cell.cell], spent, grid)
            rows.setdefault(setting_of(cell), []).append(line)
    if not rows:
        return np.full(len(grid), math.nan)
    result: NDArray[Any] = np.mean([np.mean(lines, axis=0) for lines in rows.values()], axis=0)
    return result
