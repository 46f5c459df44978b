from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from oneround import models
from oneround.study import ArchitectureSpec, ImageSpec, Study
from oneround.submission import TrainingSummary, write_submission

ARCHITECTURE = ArchitectureSpec(name="resnet18", arguments={"width": 2})
CREATED = "2025-01-31T12:00:00+00:00"


@pytest.fixture(scope="session")
def study() -> Study:
    return Study(
        name="cells",
        classes=("a", "b", "c"),
        sites=("north", "south", "west"),
        image=ImageSpec(channels=3, height=16, width=16),
        architectures=(ARCHITECTURE,),
    )


def client_model(study: Study, seed: int = 0) -> nn.Module:
    """A network whose BatchNorm buffers differ from their initial values."""
    torch.manual_seed(seed)
    model = models.build(study.architectures[0], study.image, len(study.classes))
    for _ in range(3):
        model(torch.randn(4, *study.image.shape) * 2 + 1)
    return model.eval()


@pytest.fixture(scope="session")
def model(study: Study) -> nn.Module:
    return client_model(study)


@pytest.fixture
def submit(tmp_path: Path, study: Study, model: nn.Module) -> Callable[..., Path]:
    """Write a submission with good values for everything that is not given."""

    def write(name: str = "north.oneround", **changes: Any) -> Path:
        arguments = {
            "model": model,
            "study": study,
            "site": "north",
            "architecture": study.architectures[0],
            "images": 120,
            "class_counts": [50, 40, 30],
            "training": TrainingSummary(
                epochs=5, best_epoch=4, loss=0.25, validation={"accuracy": 0.75}
            ),
            "created": CREATED,
        }
        write_submission(tmp_path / name, **(arguments | changes))
        return tmp_path / name

    return write
