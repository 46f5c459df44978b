import itertools
import re

import pytest

from oneround.research.benchmark.figures import overall_figure, setting_figures

from .made_up_table import ENTRIES, cell, curve, drawn


@pytest.fixture(scope="module")
def made():
    pairs = list(drawn(comparisons=("published",)))
    return [row for row, _ in pairs], {row.cell: line for row, line in pairs}


def end(path):
    return tuple(map(float, re.findall(r"([\d.]+) ([\d.]+)h0$", path)[0]))


def test_a_line_ends_at_its_mark(made):
    overall = overall_figure(*made, "flops", ENTRIES)
    for figure in [overall, *setting_figures(*made, "seconds", ENTRIES)]:
        paths = dict(figure.chart.lines)
        assert [mark.number for mark in figure.marks] == list(range(1, 10))
        for mark in figure.marks:
            if mark.name == "ensemble":  # has no curve
                assert not paths[mark.name]
            else:
                assert end(paths[mark.name]) == (mark.x, mark.y)


def test_marks_lie_inside_and_labels_do_not_overlap(made):
    for figure in setting_figures(*made, "flops", ENTRIES):
        left, top, right, bottom = figure.chart.frame
        for mark in figure.marks:
            assert left <= mark.x <= right
            assert top <= mark.whisker[0] <= mark.y <= mark.whisker[1] <= bottom
        for a, b in itertools.combinations(figure.marks, 2):
            assert abs(a.x - b.x) >= 20 or abs(a.label_y - b.label_y) >= 9.9


def test_front_is_marked_and_joined():
    rows = [
        cell(entry="a", flops=10, accuracy=0.5),
        cell(entry="b", flops=100, accuracy=0.7),
        cell(entry="c", flops=1000, accuracy=0.6),
    ]
    (figure,) = setting_figures(rows, {}, "flops", ["a", "b", "c"])
    assert [mark.front for mark in figure.marks] == [True, True, False]
    assert [mark.whisker for mark in figure.marks] == [None] * 3
    a, b, _ = figure.marks
    assert figure.front == f"M{a.x} {a.y}H{b.x}V{b.y}"


def test_what_cost_nothing_is_at_the_left_edge():
    rows = [cell(entry="a", flops=0), cell(entry="b", flops=10**9)]
    (figure,) = setting_figures(rows, {}, "flops", ["a", "b"])
    assert figure.marks[0].x == figure.chart.frame[0]
    assert setting_figures(rows[:1], {}, "flops", ["a"]) == []


def test_a_low_start_does_not_crowd_the_ends():
    rows = [cell(entry=name, accuracy=value) for name, value in (("a", 0.9), ("b", 0.88))]
    curves = {row.cell: curve(row.flops, row.seconds, row.accuracy, size=300) for row in rows}
    (figure,) = setting_figures(rows, curves, "flops", ["a", "b"])
    assert float(figure.chart.y_ticks[0][1]) >= 80
    heights = [float(y) for _, p in figure.chart.lines for y in re.findall(r"[\d.]+ (-?[\d.]+)", p)]
    assert max(heights) <= figure.chart.frame[3]


def test_one_setting_has_no_overall_figure():
    assert overall_figure([cell(), cell(entry="x")], {}, "flops", ["kang2025", "x"]) is None
