import numpy as np
from numpy.testing import assert_allclose

from oneround.research.benchmark.cells import CurvePoint
from oneround.research.benchmark.curves import at_cost, log_grid, mean_curve

from .made_up_table import cell


def line(*pairs):
    return [
        CurvePoint(flops=flops, seconds=flops / 10, accuracy=value, balanced_accuracy=0)
        for flops, value in pairs
    ]


def test_the_last_observation_counts():
    curve = line((10, 0.1), (100, 0.5), (100, 0.6), (1000, 0.7))
    grid = np.array([5.0, 10.0, 99.0, 100.0, 5000.0])
    assert_allclose(at_cost(curve, "flops", grid), [np.nan, 0.1, 0.1, 0.6, 0.7])
    assert_allclose(at_cost(curve, "seconds", grid / 10), [np.nan, 0.1, 0.1, 0.6, 0.7])
    assert np.isnan(at_cost([], "flops", grid)).all()


def test_grid_spans_all_curves_at_equal_ratios():
    grid = log_grid([line((0, 0.1), (10, 0.2)), line((10_000, 0.3))], "flops", size=4)
    assert_allclose(grid, [10, 100, 1000, 10_000])
    assert log_grid([], "flops").size == 0
    assert log_grid([line((0, 0.1))], "flops").size == 0


def test_ends_of_a_curve_are_on_its_own_grid():
    curve = line((7, 0.1), (7 * 10**13, 0.9))
    assert_allclose(at_cost(curve, "flops", log_grid([curve], "flops"))[[0, -1]], [0.1, 0.9])


def test_mean_over_seeds_then_settings():
    cells = [cell(seed=0), cell(seed=1), cell(data="b"), cell(data="c")]
    lines = [line((1, 0.2), (10, 0.4)), line((1, 0.4), (100, 0.8)), line((10, 0.9))]
    curves = {c.cell: points for c, points in zip(cells, lines, strict=False)}
    grid = np.array([1.0, 10.0, 100.0])
    expected = [np.nan, ((0.4 + 0.4) / 2 + 0.9) / 2, ((0.4 + 0.8) / 2 + 0.9) / 2]
    assert_allclose(mean_curve(cells, curves, "flops", grid), expected)
    assert np.isnan(mean_curve(cells, {}, "flops", grid)).all()
