from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oneround.distillation.synthesis import ImageBank
from oneround.distillation.synthesis.bank import Pool
from oneround.errors import OneRoundError
from oneround.runs.checkpoint import load_state, save_state
from tests.tiny import seeded


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


def pool(*counts: int) -> Pool:
    """Images whose values are their numbers, their targets are the same."""
    made, first = Pool(), 0
    for count in counts:
        numbers = torch.arange(first, first + count)
        made.add(numbers.float().view(-1, 1, 1, 1).expand(count, 3, 8, 8), numbers)
        first += count
    return made


def test_a_pool_grows() -> None:
    grown = pool(3, 2)
    assert len(grown) == 5
    assert grown.images.dtype == torch.float16
    assert grown.images.shape == (5, 3, 8, 8)
    assert grown.targets.tolist() == grown.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_a_pass_has_every_image_once() -> None:
    batches = list(pool(8).batches(4, seeded()))
    assert [len(targets) for _, targets in batches] == [4, 4]
    order = [n for _, targets in batches for n in targets.tolist()]
    assert sorted(order) == list(range(8))
    assert order != list(range(8)), "they are shuffled"
    for images, targets in batches:
        assert images.dtype == torch.float32
        assert torch.equal(images[:, 0, 0, 0], targets.float())


def test_batches_are_of_equal_size() -> None:
    assert [len(y) for _, y in pool(7).batches(3, seeded())] == [3, 3]
    assert [len(y) for _, y in pool(2).batches(3, seeded())] == [2]
    assert list(Pool().batches(3, seeded())) == []


def test_as_many_batches_as_asked_in_several_passes() -> None:
    order = [y.tolist() for _, y in pool(6).batches(3, seeded(), 5)]
    assert len(order) == 5
    assert sorted(order[0] + order[1]) == sorted(order[2] + order[3]) == list(range(6))
    assert order[:2] != order[2:4], "each pass has an order of its own"


def test_a_pool_goes_into_a_checkpoint(tmp_path: Path) -> None:
    saved, read = pool(3, 2), Pool()
    save_state(tmp_path / "checkpoint.pt", {"pool": saved.state_dict()})
    read.load_state_dict(load_state(tmp_path / "checkpoint.pt")["pool"])
    assert torch.equal(read.images, saved.images)
    assert torch.equal(read.targets, saved.targets)


@pytest.mark.parametrize("content", [b"", b"\x02\0\0\0\0\0\0\0{}", bytes(100)])
def test_damaged_part_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bank.safetensors").write_bytes(content)
    with pytest.raises(OneRoundError, match="damaged") as caught:
        ImageBank.read(tmp_path / "bank.safetensors")
    assert caught.value.file == str(tmp_path / "bank.safetensors")
