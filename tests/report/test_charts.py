import itertools
import math
import re

import pytest

from oneround.report.charts import line_chart, log_axis, phase_charts


def coordinates(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)]


def test_points_lie_where_the_ticks_say():
    chart = line_chart("t", {"a": [(0, 0.0), (50, 0.5), (100, 1.0)]}, x_label="step")
    left, top, right, bottom = chart.frame
    assert coordinates(chart.lines[0][1]) == [
        (left, bottom), ((left + right) / 2, (top + bottom) / 2), (right, top),
    ]  # fmt: skip
    assert {text: y for y, text in chart.y_ticks}["0.5"] == (top + bottom) / 2


def test_logarithmic_where_most_values_are_tiny():
    decay = [(x, 10.0 ** (3 - x)) for x in range(7)]
    assert [text for _, text in line_chart("t", {"a": decay}, x_label="x").y_ticks] == [
        "0.001", "0.01", "0.1", "1", "10", "100", "1000",
    ]  # fmt: skip
    with_zero = [*decay, (7, 0.0)]
    assert line_chart("t", {"a": with_zero}, x_label="x").y_ticks[0][1] == "0"


def test_one_point_and_constant_lines_are_drawn():
    for points in ([(1, 0.3)], [(1, 0.0), (2, 0.0)]):
        chart = line_chart("t", {"a": points}, x_label="epoch")
        assert all(
            math.isfinite(value) for point in coordinates(chart.lines[0][1]) for value in point
        )
        assert [text for _, text in chart.y_ticks] == [f"{points[0][1]:g}"]
        assert len(chart.x_ticks) == len({text for _, text in chart.x_ticks})


def test_long_series_are_thinned_and_keep_their_end():
    chart = line_chart("t", {"a": [(x, float(x)) for x in range(10_001)]}, x_label="step")
    points = coordinates(chart.lines[0][1])
    assert len(points) <= 201
    assert points[-1][0] == chart.frame[2]


def test_every_number_of_a_phase_gets_a_chart():
    rows = [{"shard": s, "step": t, "loss": 1.0 + s, "name": "x"} for s in (0, 1) for t in (1, 2)]
    (chart,) = phase_charts(rows)
    assert chart.title == "Loss"
    assert [label for label, _ in chart.lines] == ["shard 0", "shard 1"]


def test_sites_keep_their_place_when_one_has_no_values():
    phase = {
        "a": [{"epoch": 1, "loss": 1.0, "val_loss": None}],
        "b": [{"epoch": 1, "loss": math.nan, "val_loss": 2.0}],
    }
    loss, val_loss = phase_charts(phase)
    assert [bool(path) for _, path in loss.lines] == [True, False]
    assert [bool(path) for _, path in val_loss.lines] == [False, True]


def test_nothing_logged():
    assert phase_charts([]) == []
    assert phase_charts({"a": []}) == []


def test_logarithmic_axis_has_equal_ratios_at_equal_distances():
    at, ticks = log_axis([3.0, 4e6], 0, 600, text="{:g}".format)
    assert [text for _, text in ticks] == ["10", "100", "1000", "10000", "100000", "1e+06"]
    steps = {round(b - a, 0) for (a, _), (b, _) in itertools.pairwise(ticks)}
    assert len(steps) == 1
    assert 0 < at(3.0) < at(4e6) < 600
    assert at(0) == 0


@pytest.mark.parametrize("values", [[7.0], [3.1, 3.2], [1e12, 1.4e13]])
def test_logarithmic_axis_always_has_ticks(values):
    _, ticks = log_axis(values, 0, 300, text="{:g}".format)
    assert 1 <= len(ticks) <= 7
