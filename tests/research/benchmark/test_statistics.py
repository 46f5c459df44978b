import itertools

import numpy as np
import pytest
from scipy import stats

from oneround.research.benchmark import statistics
from oneround.research.benchmark.statistics import (
    Setting,
    by_setting,
    comparisons,
    entries,
    mean_ranks,
    overall,
    paired,
    pareto_front,
    ranks,
    settings,
    spread,
)

from .made_up_table import cell, drawn


def place(data):
    return Setting(data, "iid", 3, "resnet18")


def grid(**values):
    """``name="a: 0.1 0.2, b: 0.3"``: balanced accuracy by setting and seed."""
    return [
        cell(entry=entry, data=data.strip(), seed=seed, balanced_accuracy=float(number))
        for entry, text in values.items()
        for data, numbers in (part.split(":") for part in text.split(","))
        for seed, number in enumerate(numbers.split())
    ]


def test_mean_and_sample_deviation():
    assert spread([0.1, 0.2, 0.6]).mean == pytest.approx(0.3)
    assert spread([0.1, 0.2, 0.6]).deviation == pytest.approx(np.sqrt(0.14 / 2))
    assert spread([0.4]) == statistics.Spread(0.4, None, 1)


def test_by_setting_leaves_out_what_has_no_value():
    cells = [*grid(x="a: 0.1 0.3, b: 0.5"), cell(data="c", entry="x", auroc=None)]
    table = by_setting(cells, "balanced_accuracy")
    assert list(table) == [place("a"), place("b"), place("c")]
    assert table[place("a")]["x"].mean == pytest.approx(0.2)
    assert place("c") not in by_setting(cells, "auroc")


def test_overall_is_over_settings_that_all_entries_have():
    cells = grid(x="a: 0.1 0.3, b: 0.7 0.7, c: 0.9", y="a: 0.5, b: 0.6 0.8")
    result = overall(cells, "balanced_accuracy")
    assert result.settings == [place("a"), place("b")]
    assert result.entries["x"].mean == pytest.approx((0.2 + 0.7) / 2)
    assert result.entries["y"].mean == pytest.approx((0.5 + 0.7) / 2)
    assert result.entries["x"].deviation == pytest.approx(np.std([0.4, 0.5], ddof=1))
    assert result.entries["y"].deviation is None
    assert overall(grid(x="a: 0.1", y="b: 0.2"), "balanced_accuracy").entries == {}


def test_paired_differences_against_scipy():
    x, y = [0.5, 0.7, 0.6, 0.9], [0.45, 0.72, 0.6, 0.6]
    cells = grid(
        x=f"a: {x[0]} {x[1]}, b: {x[2]} {x[3]} 0.1", y=f"a: {y[0]} {y[1]}, b: {y[2]} {y[3]}, c: 1"
    )
    difference = paired(cells, "x", "y", "balanced_accuracy")
    expected = stats.ttest_rel(x, y)
    low, high = expected.confidence_interval(0.95)
    assert difference.mean == pytest.approx(np.mean(x) - np.mean(y))
    assert difference.interval == pytest.approx((low, high))
    assert (difference.pairs, difference.wins, difference.ties) == (4, 2, 1)


def test_too_few_pairs():
    cells = grid(x="a: 0.5", y="a: 0.25, b: 0.1", z="c: 0.1")
    difference = paired(cells, "x", "y", "balanced_accuracy")
    assert (difference.mean, difference.interval, difference.pairs) == (0.25, None, 1)
    assert paired(cells, "x", "z", "balanced_accuracy") is None
    same = paired(grid(x="a: 0.5 0.5", y="a: 0.25 0.25"), "x", "y", "balanced_accuracy")
    assert same.interval == (0.25, 0.25)


def test_ranks_share_ties_and_need_every_entry():
    cells = grid(x="a: 0.5, b: 0.4, c: 0.9", y="a: 0.5, b: 0.6", z="a: 0.1, b: 0.5")
    table = ranks(cells)
    assert table == {
        place("a"): {"x": 1.5, "y": 1.5, "z": 3.0},
        place("b"): {"x": 3.0, "y": 1.0, "z": 2.0},
    }
    assert mean_ranks(table) == {"x": 2.25, "y": 1.25, "z": 2.5}
    assert mean_ranks({}) == {}


def test_front_against_every_pair():
    points = {"a": (1, 0.5), "b": (1, 0.4), "c": (2, 0.5), "d": (3, 0.7), "e": (2.5, 0.6)}
    assert pareto_front(points) == ["a", "e", "d"]
    assert pareto_front({"a": (1, 0.5), "b": (1, 0.5)}) == ["a", "b"]
    assert pareto_front({}) == []
    numbers = np.random.default_rng(0).integers(0, 12, (60, 2))
    points = {str(i): (int(c), int(v)) for i, (c, v) in enumerate(numbers)}
    beaten = {
        p
        for p, q in itertools.permutations(points, 2)
        if points[q][0] <= points[p][0] and points[q][1] >= points[p][1] and points[q] != points[p]
    }
    assert set(pareto_front(points)) == set(points) - beaten


def test_comparisons_are_separate_and_the_last_of_equal_cells_counts():
    cells = [row for row, _ in drawn(data=("bloodmnist",), partitions=("iid",))]
    again = cells[0].model_copy(update={"cell": "again", "accuracy": 0.123})
    groups = comparisons([*cells, again])
    assert [len(group) for group in groups.values()] == [18, 18]
    assert groups["published"][-1] == again
    assert cells[0] not in groups["published"]


def test_settings_differ_in_sites_and_architecture():
    cells = [cell(), cell(sites=5), cell(architecture="cnn"), cell(entry="x", seed=1)]
    assert len(settings(cells)) == 3
    assert entries(cells) == ["kang2025", "x"]


def test_only_cells_on_the_same_client_models_are_compared():
    rows = [
        cell(entry="x", clients="old"),
        cell(entry="y", clients="old", comparison="reference"),
        cell(entry="y", clients="old", seed=1),
        cell(entry="z", clients="new"),
    ]
    found = comparisons(rows)
    assert {name: [(c.entry, c.seed) for c in group] for name, group in found.items()} == {
        "published": [("y", 1), ("z", 0)]
    }
