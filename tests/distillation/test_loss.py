from __future__ import annotations

import pytest
import torch
from torch import nn

from oneround.distillation.loss import kd_loss


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_loss_is_torchs_divergence_weighted_by_lambda(temperature: float) -> None:
    student = torch.randn(5, 4)
    original, adapted = (torch.randn(5, 4).log_softmax(1) for _ in range(2))
    weight = torch.rand(5)
    kl = nn.KLDivLoss(reduction="none", log_target=True)
    log_q = (student / temperature).log_softmax(1)
    terms = [
        w * temperature**2 * kl(log_q, (teacher / temperature).log_softmax(1)).sum(1)
        for w, teacher in ((weight, original), (1 - weight, adapted))
    ]
    both, weights = torch.stack([original, adapted]), torch.stack([weight, 1 - weight])
    found = kd_loss(student, both, temperature, weights)
    assert found.shape == (2,)
    for mine, teacher, w, reference in zip(found, both, weights, terms, strict=True):
        assert mine.item() == pytest.approx(reference.mean().item(), rel=1e-5)
        assert torch.equal(mine, kd_loss(student, teacher, temperature, w)), "each on its own"


def test_loss_is_zero_where_the_student_agrees() -> None:
    teacher = torch.randn(5, 4).log_softmax(1)
    assert kd_loss(teacher + 3, teacher, 2.0, torch.rand(5)).item() == pytest.approx(0, abs=1e-6)
