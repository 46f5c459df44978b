"""Geometry of line charts; the template writes the SVG."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Points = Sequence[tuple[float, float]]
Tick = tuple[float, str]
"""Position of a tick in the chart, and its text."""

_POINTS = 200  # of a line; more cannot be seen
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 16, 8, 34  # margins of the chart


@dataclass(frozen=True)
class Chart:
    """A line chart of ``width`` × ``height`` SVG units.

    Attributes:
        title: Title of the chart.
        x_label: Label of the horizontal axis.
        lines: Label and SVG path of each series; the path of an empty series is empty.
        x_ticks: Ticks of the horizontal axis.
        y_ticks: Ticks of the vertical axis.
        width: Width in SVG units.
        height: Height in SVG units.
        frame: Left, top, right and bottom of the plot, in SVG units.
    """

    title: str
    x_label: str
    lines: list[tuple[str, str]]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    width: float
    height: float
    frame: tuple[float, float, float, float]


def line_chart(
    title: str,
    series: Mapping[str, Points],
    *,
    x_label: str,
    height: float = 200,
) -> Chart:
    """A chart of ``series``; the vertical axis is logarithmic if all values are positive and their
    median is below 1/20 of the largest."""
    width = 320.0
    left, top, right, bottom = _LEFT, _TOP, width - _RIGHT, height - _BOTTOM
    values = [y for points in series.values() for _, y in points]
    log = min(values) > 0 and statistics.median(values) < max(values) / 20
    steps = [x for points in series.values() for x, _ in points]
    x_at, x_ticks = axis(steps, left, right, tight=True)
    y_at, y_ticks = axis(values, bottom, top, log=log)
    return Chart(
        title=title,
        x_label=x_label,
        lines=[(label, line_path(_thin(points), x_at, y_at)) for label, points in series.items()],
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        width=width,
        height=height,
        frame=(left, top, right, bottom),
    )


def reliability_chart(bins: Sequence[Mapping[str, Any]]) -> Chart:
    """Share of hits against mean confidence of each bin; both axes are from 0 to 1."""
    chart = line_chart("", {"": [(0, 0), (1, 1)]}, x_label="mean confidence", height=320)
    left, top, right, bottom = chart.frame
    x_at, _ = axis([0, 1], left, right, tight=True)
    y_at, _ = axis([0, 1], bottom, top)
    points = [(bin["confidence"], bin["accuracy"]) for bin in bins]
    title = "Reliability: share of hits against confidence; the dashed line is perfect calibration"
    return replace(chart, title=title, lines=[("share of hits", line_path(points, x_at, y_at))])


def phase_charts(phase: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[Chart]:
    """One chart for each number that a phase logged.

    Args:
        phase: Log entries: one list, divided by ``shard`` if the entries have one, or one list for
            each site.
    """
    groups = phase if isinstance(phase, Mapping) else _by_shard(phase)
    rows = [row for group in groups.values() for row in group]
    x_key = next((key for key in ("epoch", "step") if any(key in row for row in rows)), "row")
    names = dict.fromkeys(key for row in rows for key in row if key not in ("shard", x_key))
    charts = []
    for name in names:
        series = {label: list(_points(group, x_key, name)) for label, group in groups.items()}
        if any(series.values()):
            charts.append(line_chart(name.replace("_", " ").capitalize(), series, x_label=x_key))
    return charts


def _by_shard(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(f"shard {row['shard']}" if "shard" in row else "", []).append(row)
    return groups


def _points(
    rows: Sequence[Mapping[str, Any]], x_key: str, name: str
) -> Iterator[tuple[float, float]]:
    for index, row in enumerate(rows):
        value = row.get(name)
        if isinstance(value, int | float) and math.isfinite(value):
            yield row.get(x_key, index), value


def axis(
    values: Sequence[float],
    start: float,
    end: float,
    *,
    log: bool = False,
    tight: bool = False,
    text: Callable[[float], str] = "{:.6g}".format,
) -> tuple[Callable[[float], float], list[Tick]]:
    """A function from values to positions between ``start`` and ``end``, and the ticks.

    The axis ends at ticks or, if ``tight``, at the smallest and largest value. If all values are
    equal, there is one tick, in the middle.
    """
    from matplotlib.ticker import MaxNLocator  # takes a second to import

    smallest, largest = min(values), max(values)
    if smallest == largest:
        middle = round((start + end) / 2, 1)
        return lambda value: middle, [(middle, text(smallest))]
    if log:
        low, high = math.floor(math.log10(smallest)), math.ceil(math.log10(largest))
        marks = [float(m) for m in range(low, high + 1)]
    else:
        marks = [float(m) for m in MaxNLocator(4).tick_values(smallest, largest)]
    first, last = (smallest, largest) if tight else (marks[0], marks[-1])

    def at(value: float) -> float:
        place = math.log10(value) if log else value
        return round(start + (place - first) / (last - first) * (end - start), 1)

    shown = [10**mark if log else mark for mark in marks if first <= mark <= last]
    return at, [(at(value), text(value)) for value in shown]


def log_axis(
    values: Sequence[float], start: float, end: float, *, text: Callable[[float], str]
) -> tuple[Callable[[float], float], list[Tick]]:
    """A logarithmic axis, slightly wider than the range of the positive ``values``.

    Values that are not positive are placed at ``start``. Ticks are powers of ten or, if the axis
    spans less than two of them, 1, 2 and 5 times powers of ten.
    """
    low, high = math.log10(min(values)), math.log10(max(values))
    wider = max(0.2, 0.04 * (high - low))
    first, last = low - wider, high + wider

    def at(value: float) -> float:
        share = (math.log10(value) - first) / (last - first) if value > 0 else 0
        return round(start + share * (end - start), 1)

    factors = (1, 2, 5) if last - first < 2 else (1,)
    powers = range(math.floor(first), math.ceil(last))
    marks = [factor * 10.0**power for power in powers for factor in factors]
    shown = [mark for mark in marks if first <= math.log10(mark) <= last]
    step = math.ceil(len(shown) / 7)
    return at, [(at(mark), text(mark)) for mark in shown[::step]]


def _thin(points: Points) -> Points:
    """Every n-th point, and always the last."""
    step = math.ceil(len(points) / _POINTS)
    return [*points[:-1:step], points[-1]] if step > 1 else points


def line_path(
    points: Points, x_at: Callable[[float], float], y_at: Callable[[float], float]
) -> str:
    """The SVG path of a line; its empty last segment makes a single point visible."""
    return "M" + "L".join(f"{x_at(x)} {y_at(y)}" for x, y in points) + "h0" if points else ""
