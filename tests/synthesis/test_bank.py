from __future__ import annotations

from pathlib import Path

import torch

from oneround.synthesis import ImageBank
from tiny import seeded


def bank(count: int = 4, progress: float = 1.0) -> ImageBank:
    images = torch.arange(float(count)).view(-1, 1, 1, 1).expand(count, 3, 8, 8).half()
    return ImageBank(images, torch.arange(count) % 3, torch.full((count,), progress))


def test_round_trip(tmp_path: Path) -> None:
    bank().write(tmp_path / "000.safetensors")
    read = ImageBank.read(tmp_path / "000.safetensors")
    for name in ("images", "targets", "progress"):
        one, other = getattr(read, name), getattr(bank(), name)
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_samples_are_drawn_with_replacement() -> None:
    drawn = bank().sample(400, seeded())
    assert drawn.dtype == torch.float32
    counts = torch.bincount(drawn[:, 0, 0, 0].long(), minlength=4)
    assert counts.min() > 60
    assert torch.equal(drawn, bank().sample(400, seeded()))


def test_join_and_finished() -> None:
    joined = ImageBank.join([bank(2, 0.5), bank(3, 1.0)])
    assert len(joined) == 5
    assert torch.equal(joined.finished().images, bank(3).images)
    assert len(joined.finished()) == 3
