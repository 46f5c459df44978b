from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from oneround.data import store
from oneround.data.store import DiskPixels, MemoryStore, enough_memory, to_stored
from oneround.errors import OneRoundError
from tests.tiny import seeded


def test_values_are_rounded_to_the_nearest() -> None:
    pixels = torch.tensor([0.0, 0.5, 1.0, 100.4 / 255])
    assert to_stored(pixels, torch.uint8).tolist() == [0, 128, 255, 100]
    assert to_stored(pixels, torch.uint16).tolist() == [0, 32768, 65535, round(100.4 * 257)]
    eight = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_stored(eight, torch.uint16).float() / 65535, eight.float() / 255)


@pytest.mark.parametrize("parts", [[5], [2, 3], [1] * 20, [1, 30]])
def test_memory_grows_beyond_what_was_expected(parts: list[int]) -> None:
    images = [torch.randint(256, (n, 1, 2, 3), generator=seeded(n)).to(torch.uint8) for n in parts]
    memory = MemoryStore(5, (1, 2, 3), torch.uint8)
    rows = [memory.append(part) for part in images]
    assert torch.equal(memory.pixels(), torch.cat(images))
    assert rows[-1].stop == sum(parts)


def test_pixels_on_disk_are_those_of_the_file(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 65536, (7, 3, 4, 5)).astype(np.uint16)
    (tmp_path / "pixels").write_bytes(array.tobytes() + b"more")
    disk = DiskPixels(tmp_path / "pixels", 7, (3, 4, 5), torch.uint16)
    assert (disk.shape, len(disk)) == ((7, 3, 4, 5), 7)
    for chosen in (slice(None), slice(2, 5), torch.tensor([6, 0, 6]), torch.tensor([]).long()):
        index = chosen if isinstance(chosen, slice) else chosen.numpy()
        assert np.array_equal(disk[chosen].numpy(), array[index])
    assert len(DiskPixels(tmp_path / "pixels", 0, (3, 4, 5), torch.uint16)[:]) == 0


def test_what_was_read_is_not_kept_in_memory(tmp_path: Path) -> None:
    with (tmp_path / "pixels").open("wb") as file:
        file.truncate(200 * 3 * 256 * 256)
    disk = DiskPixels(tmp_path / "pixels", 200, (3, 256, 256), torch.uint8)

    def of_files() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))

    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not say how much memory is in use")
    before = of_files()
    for start in range(0, 200, 20):
        disk[start : start + 20]
    assert of_files() - before < 8000, "in KB, of 39 000 that were read"


def test_an_error_of_memory_has_a_remedy() -> None:
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with pytest.raises(OneRoundError, match="not enough memory") as caught, enough_memory():
            raise error
        assert "--cache" in caught.value.remedy
    with pytest.raises(RuntimeError, match="another"), enough_memory():
        raise RuntimeError("another")


def test_memory_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 200000\nfile 500000\n")
    monkeypatch.setattr(store, "CONTAINER", tmp_path)
    assert store.free_memory() == 800000, "what the files of the cache of the system take is free"
    (tmp_path / "memory.max").write_text("max\n")
    assert store.free_memory() > 10**7
