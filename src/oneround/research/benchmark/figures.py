"""Charts of a benchmark: accuracy over cost, with a mark at the end of each entry.

Like the charts of a run they are SVG in the page, not figures of matplotlib, so that they take
their colors from the style sheet and follow the reader's light or dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from oneround.report.charts import Chart, axis, line_path, log_axis
from oneround.report.units import si
from oneround.research.benchmark import statistics
from oneround.research.benchmark.cells import Cell, CurvePoint
from oneround.research.benchmark.curves import Spent, log_grid, mean_curve
from oneround.research.benchmark.statistics import Spread
from oneround.research.benchmark.summary import setting_names

WIDTH, HEIGHT = 340.0, 250.0
_FRAME = (36.0, 10.0, WIDTH - 30, HEIGHT - 36)  # left, top, right, bottom
_LABEL = 10.0  # height of a label
_X: dict[Spent, tuple[str, Callable[[float], str]]] = {
    "flops": ("operations, FLOP", lambda value: si(value, "")),
    "seconds": ("time, s", "{:g}".format),
}

_TITLES: dict[Spent, str] = {"flops": "Operations", "seconds": "Time"}

Curves = Mapping[str, Sequence[CurvePoint]]
End = tuple[float, Spread]
"""Mean cost of an entry, and its final accuracy."""


@dataclass(frozen=True)
class Mark:
    """The mark at the end of one entry.

    Attributes:
        number: Number in the legend, from 1.
        name: Name of the entry.
        x: Horizontal position, in SVG units.
        y: Vertical position, in SVG units.
        whisker: Top and bottom of mean ± deviation; ``None`` for one seed.
        label_y: Vertical position of the label, in SVG units.
        front: Whether the entry is on the Pareto front.
    """

    number: int
    name: str
    x: float
    y: float
    whisker: tuple[float, float] | None
    label_y: float
    front: bool


@dataclass(frozen=True)
class Figure:
    """A chart, the marks of its entries, and the SVG path of the Pareto front."""

    chart: Chart
    marks: list[Mark]
    front: str


def overall_figure(
    cells: Sequence[Cell], curves: Curves, spent: Spent, names: Sequence[str]
) -> Figure | None:
    """A chart of the means over the settings that all entries have; ``None`` for fewer than two.

    Arguments as :func:`setting_figures`.
    """
    whole = statistics.overall(cells, "accuracy")
    if len(whole.settings) < 2:
        return None
    costs = statistics.overall(cells, spent).entries
    ends = {name: (costs[name].mean, value) for name, value in whole.entries.items()}
    inside = [cell for cell in cells if statistics.setting_of(cell) in whole.settings]
    title = f"{_TITLES[spent]}, mean over {len(whole.settings)} settings"
    return _figure(title, inside, ends, curves, spent, names)


def setting_figures(
    cells: Sequence[Cell], curves: Curves, spent: Spent, names: Sequence[str]
) -> list[Figure]:
    """One chart for each setting.

    Args:
        cells: Cells of one comparison.
        curves: Curves by the hash of their cell.
        spent: Cost on the horizontal axis.
        names: All entries of the page; their order gives color, line style and number.
    """
    places = setting_names(statistics.settings(cells))
    costs, accuracy = (statistics.by_setting(cells, m) for m in (spent, "accuracy"))
    drawn = []
    for setting, title in places.items():
        ends = {name: (costs[setting][name].mean, v) for name, v in accuracy[setting].items()}
        inside = [cell for cell in cells if statistics.setting_of(cell) == setting]
        drawn.append(_figure(title, inside, ends, curves, spent, names))
    return [figure for figure in drawn if figure]


def _figure(
    title: str,
    cells: Sequence[Cell],
    ends: Mapping[str, End],
    curves: Curves,
    spent: Spent,
    names: Sequence[str],
) -> Figure | None:
    """A chart; ``None`` if no cost is positive, since a logarithmic axis has no place for zero."""
    floor = _floor(ends)
    lines = {name: _above(floor, _line(name, cells, ends, curves, spent)) for name in names}
    drawn = [point for line in lines.values() for point in line]
    costs = [x for x, _ in drawn] + [cost for cost, _ in ends.values()]
    if not any(cost > 0 for cost in costs):
        return None
    left, top, right, bottom = _FRAME
    label, text = _X[spent]
    x_at, x_ticks = log_axis([c for c in costs if c > 0], left, right, text=text)
    heights = [y for _, y in drawn] + [y for _, value in ends.values() for y in _bounds(value)]
    y_at, y_ticks = axis(heights, bottom, top, text=lambda y: f"{100 * y:.4g}")
    paths = [(name, line_path(line, x_at, y_at)) for name, line in lines.items()]
    chart = Chart(title, label, paths, x_ticks, y_ticks, WIDTH, HEIGHT, _FRAME)
    front = statistics.pareto_front({name: (cost, v.mean) for name, (cost, v) in ends.items()})
    marks = _marks(ends, front, names, x_at, y_at)
    return Figure(chart, marks, _stairs([m for n in front for m in marks if m.name == n]))


def _line(
    name: str, cells: Sequence[Cell], ends: Mapping[str, End], curves: Curves, spent: Spent
) -> list[tuple[float, float]]:
    """The mean curve of an entry up to its end; empty if it has no curve."""
    mine = [cell for cell in cells if cell.entry == name]
    grid = log_grid([curves.get(cell.cell, ()) for cell in mine], spent)
    if name not in ends or not grid.size:
        return []
    cost, value = ends[name]
    mean = mean_curve(mine, curves, spent, grid)
    points = zip(grid.tolist(), mean.tolist(), strict=True)
    return [(x, y) for x, y in points if math.isfinite(y) and x < cost] + [(cost, value.mean)]


def _floor(ends: Mapping[str, End]) -> float:
    """Lower end of the plot, chosen so that the ends of good entries do not crowd at the top."""
    bounds = [bound for _, value in ends.values() for bound in _bounds(value)]
    return max(0.0, min(bounds) - max(0.05, max(bounds) - min(bounds)))


def _above(floor: float, line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The line from its last point before it first rises above the floor, nowhere below it."""
    first = next((i for i, (_, y) in enumerate(line) if y > floor), len(line))
    return [(x, max(y, floor)) for x, y in line[max(0, first - 1) :]]


def _bounds(value: Spread) -> tuple[float, float]:
    reach = value.deviation or 0.0
    return value.mean - reach, value.mean + reach


def _marks(
    ends: Mapping[str, End],
    front: Sequence[str],
    names: Sequence[str],
    x_at: Callable[[float], float],
    y_at: Callable[[float], float],
) -> list[Mark]:
    places = {name: (x_at(cost), y_at(value.mean)) for name, (cost, value) in ends.items()}
    labels = _labels(places)
    return [
        Mark(
            number=names.index(name) + 1,
            name=name,
            x=places[name][0],
            y=places[name][1],
            whisker=(y_at(high), y_at(low)) if value.deviation is not None else None,
            label_y=labels[name],
            front=name in front,
        )
        for name in names
        if name in ends
        for value in [ends[name][1]]
        for low, high in [_bounds(value)]
    ]


def _labels(places: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Vertical position of the label beside each mark, so that no two labels overlap.

    From top to bottom, each label has the height of its mark or, if a label is there, the next
    free height.
    """
    heights: dict[str, float] = {}
    for name in sorted(places, key=lambda name: places[name][1]):
        x, y = places[name]
        near = [heights[n] for n in heights if abs(places[n][0] - x) < 2 * _LABEL]
        taken = sorted(height for height in near if height > y - _LABEL)
        for height in taken:
            y = max(y, height + _LABEL) if height < y + _LABEL else y
        heights[name] = round(y, 1)
    return heights


def _stairs(marks: Sequence[Mark]) -> str:
    """SVG path of the Pareto front: at each cost, the best accuracy up to this cost."""
    steps = "".join(f"H{after.x}V{after.y}" for _, after in pairwise(marks))
    return f"M{marks[0].x} {marks[0].y}{steps}" if steps else ""
