from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from oneround import models
from oneround.distillation.synthesis import ImageBank
from oneround.distillation.training import DistillationOptions, bank_samples, train_student
from oneround.errors import OneRoundError
from oneround.runs.stage import Stage
from tests.tiny import IMAGE, RESNET, equal, interrupted, network, seeded

BANK = ImageBank(
    torch.randn(6, *IMAGE.shape, generator=seeded()).clamp(-1, 1).half(),
    torch.arange(6) % 3,
    torch.ones(6),
)


def options(**changes: Any) -> DistillationOptions:
    tiny = {"steps": 6, "batch_size": 4, "batches": 3, "augment": (), "checkpoint_every": 2}
    return DistillationOptions(**(tiny | changes))


def brightness(x: torch.Tensor) -> torch.Tensor:
    """A teacher that is no network: the color with the largest mean."""
    return (8 * x.mean((2, 3))).log_softmax(1)


def train(stage: Stage, teacher: Any = brightness, **changes: Any) -> nn.Module:
    student = models.build(RESNET, IMAGE, 3, seed=1)
    chosen = options(**changes)
    return train_student(teacher, bank_samples(BANK, chosen.augment), student, chosen, stage)


def test_any_callable_is_a_teacher() -> None:
    stage = Stage("distillation")
    train(stage, steps=150, batch_size=6, temperature=1.0)
    assert stage.curve[-1]["agreement"] == 1
    assert stage.curve[-1]["loss"] < 0.1 * stage.curve[0]["loss"]
    assert stage.curve[-1].keys() == {"step", "loss", "learning_rate", "agreement"}


def test_interrupted_and_resumed_is_bit_equal(tmp_path: Path) -> None:
    straight = train(Stage("distillation", 2))
    with interrupted(stage := Stage("distillation", 2, tmp_path), 5):
        train(stage)
    resumed = Stage("distillation", 2, tmp_path)
    assert equal(train(resumed), straight)


def test_statistics_of_the_bank_at_the_end() -> None:
    chosen, student = options(), network(3)
    samples = bank_samples(BANK, ())
    stage = Stage("distillation")
    train_student(brightness, samples, student, chosen, stage, recalibrate_on=BANK)
    with torch.no_grad():
        outputs = student.conv1(BANK.images.float()).transpose(0, 1).flatten(1)
    assert torch.allclose(student.bn1.running_mean, outputs.mean(1), atol=1e-4)


def test_a_part_of_the_clients_can_be_asked_of_client_models_only() -> None:
    with pytest.raises(OneRoundError, match="this teacher has none to sample") as caught:
        train(Stage("distillation"), asked=1)
    assert "asked=0" in caught.value.remedy
