from __future__ import annotations

import sys
import time

import pytest
import torch
from torch import nn

from oneround.runs.cost import Cost, Meter


def test_flops_of_a_small_network_by_hand() -> None:
    conv, linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 8 * 8, 5)
    of_conv = 2 * 2 * 4 * 8 * 8 * 3 * 3 * 3  # batch 2, multiply-add is 2
    of_linear = 2 * 2 * 4 * 8 * 8 * 5
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), linear)
    x = torch.randn(2, 3, 8, 8)
    meter = Meter()
    with meter.step("forward"), torch.no_grad():
        model(x)
    assert meter.cost.flops == of_conv + of_linear
    with meter.step("both"):
        model(x).sum().backward()
    # Backward: two products of the same size for each layer; none for the input of the first.
    assert meter.cost.flops == (of_conv + of_linear) + (2 * of_conv + 3 * of_linear)


def test_gradient_to_the_pixels_costs_one_more_product() -> None:
    linear = nn.Linear(6, 5).requires_grad_(False)
    meter = Meter()
    with meter.step():
        linear(torch.randn(7, 6, requires_grad=True)).sum().backward()
    assert meter.cost.flops == 2 * (2 * 7 * 6 * 5)


def test_steps_of_one_kind_add_the_same_number() -> None:
    meter, linear = Meter(), nn.Linear(6, 5)
    for _ in range(3):
        with meter.step(7):
            linear(torch.randn(7, 6))
    with meter.step(1):
        linear(torch.randn(1, 6))
    assert meter.cost.flops == (3 * 7 + 1) * 2 * 6 * 5


def test_a_step_that_fails_is_not_counted() -> None:
    meter = Meter()
    with pytest.raises(ZeroDivisionError), meter.step():
        raise ZeroDivisionError
    with meter.step():
        nn.Linear(6, 5)(torch.randn(7, 6))
    assert meter.cost.flops == 2 * 7 * 6 * 5


def test_meter_goes_on_from_what_was_spent() -> None:
    meter = Meter(Cost(flops=100, seconds=50.0, peak_memory_bytes=1))
    time.sleep(0.01)
    assert meter.cost.flops == 100
    assert 50.01 < meter.cost.seconds < 51
    assert meter.cost.peak_memory_bytes > 1


@pytest.mark.skipif(sys.platform != "linux", reason="the peak cannot be reset elsewhere")
def test_peak_memory_sees_what_was_freed_again() -> None:
    before = Meter().cost.peak_memory_bytes
    meter = Meter()
    torch.ones(2**26)  # 256 MiB of float32
    assert meter.cost.peak_memory_bytes > before + 2**27


def test_costs_add_up() -> None:
    one = Cost(flops=1, seconds=2.0, peak_memory_bytes=30)
    two = Cost(flops=10, seconds=20.0, peak_memory_bytes=3)
    assert one + two == Cost(flops=11, seconds=22.0, peak_memory_bytes=30)
