from __future__ import annotations

import pytest
import torch
from torch import nn

from oneround.runs.optimization import learning_rate, make_optimizer, set_learning_rate


def of_torch(schedule: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return found


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2, momentum=0.9)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 375, 5000])
def test_one_cycle_is_that_of_torch_to_the_bit(steps: int) -> None:
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        sgd(), 0.2, total_steps=steps + 1, cycle_momentum=False
    )
    assert [learning_rate("one-cycle", 0.2, n, steps) for n in range(steps)] == of_torch(
        schedule, steps
    )


def test_step_and_cosine_are_those_of_torch() -> None:
    steps = torch.optim.lr_scheduler.MultiStepLR(sgd(), [50, 75])
    found = [learning_rate("step", 0.2, n, 100) for n in range(100)]
    assert found == pytest.approx(of_torch(steps, 100), rel=1e-12)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd(), 100)
    found = [learning_rate("cosine", 0.2, n, 100) for n in range(100)]
    assert found == pytest.approx(of_torch(cosine, 100), rel=1e-9)
    assert learning_rate("constant", 0.2, 99, 100) == 0.2


def test_optimizers() -> None:
    parameter = nn.Parameter(torch.ones(2))
    plain = make_optimizer([parameter], learning_rate=0.1, momentum=0, weight_decay=0)
    parameter.grad = torch.tensor([1.0, 2.0])
    plain.step()
    assert torch.allclose(parameter.detach(), torch.tensor([0.9, 0.8]))
    nesterov = make_optimizer([parameter], learning_rate=0.1)
    assert nesterov.param_groups[0]["nesterov"] is True
    set_learning_rate(nesterov, 0.3)
    assert nesterov.param_groups[0]["lr"] == 0.3
    adam = make_optimizer([parameter], learning_rate=0.1, kind="adam", weight_decay=0.2)
    assert isinstance(adam, torch.optim.Adam)
    assert adam.param_groups[0]["betas"] == (0.9, 0.999)
    assert adam.param_groups[0]["weight_decay"] == 0.2
