from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from oneround.data import cache as caches
from oneround.data import images as reader
from oneround.data import loading, read_splits
from oneround.data.store import DiskPixels
from oneround.errors import OneRoundError
from oneround.study import ImageSpec
from tests.tiny import splits, write_npz

GRAY = ImageSpec(channels=1, height=8, width=8)


def save(path: Path, value: int, depth: type = np.uint8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.arange(64).reshape(8, 8) + value
    Image.fromarray(ramp.astype(depth)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(12):
        save(tmp_path / "images" / "ab"[i % 2] / f"{i}.png", i)
    save(tmp_path / "images" / "a" / "broken.png", 0).write_bytes(b"")
    return tmp_path / "images"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded, apart from the sample."""
    names: list[str] = []
    monkeypatch.setattr(loading, "SAMPLE", 1)

    def counted(path: Path, image: ImageSpec) -> object:
        names.append(Path(path).name)
        return reader.read_file(path, image)

    monkeypatch.setattr(loading, "read_file", counted)
    return names


def read(folder: Path, cache: Path | None, **changes: object) -> object:
    return read_splits(folder, image=GRAY, max_skipped=0.5, cache=cache, **changes)  # type: ignore[arg-type]


def test_the_same_images_as_in_memory(folder: Path, tmp_path: Path) -> None:
    plain, cached = read(folder, None), read(folder, tmp_path / "cache")
    assert torch.equal(plain.train.images, cached.train.images)
    assert torch.equal(plain.train.labels, cached.train.labels)
    assert plain.skipped == cached.skipped
    chosen = torch.tensor([3, 0, 9])
    assert torch.equal(plain.train.pixels(chosen), cached.train.subset(chosen).pixels())
    assert plain.train.fingerprints() == cached.train.fingerprints()
    assert isinstance(cached.train._stored, DiskPixels)


def test_files_that_have_not_changed_are_not_read_again(
    folder: Path, tmp_path: Path, reads: list[str]
) -> None:
    first = read(folder, tmp_path / "cache")
    reads.clear()
    again = read(folder, tmp_path / "cache")
    assert reads[1:] == ["broken.png"], "after the sample"
    assert torch.equal(first.train.images, again.train.images)


def test_a_file_is_known_by_its_content(folder: Path, tmp_path: Path, reads: list[str]) -> None:
    read(folder, tmp_path / "cache")
    (folder / "a" / "0.png").rename(folder / "a" / "moved.png")
    stat = (folder / "a" / "2.png").stat()
    save(folder / "a" / "2.png", 100)
    os.utime(folder / "a" / "2.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # looks unchanged
    reads.clear()
    again = read(folder, tmp_path / "cache")
    assert "moved.png" not in reads[1:], "the same content under another name"
    assert "2.png" in reads[1:]
    assert torch.equal(again.train.images, read(folder, None).train.images)


def test_what_was_read_before_a_kill_is_kept(
    folder: Path, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "SECONDS_BETWEEN_WRITES", 0.0)
    read(folder, tmp_path / "cache")
    (place,) = (tmp_path / "cache").iterdir()
    index = place / "index.jsonl"
    lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join(lines[:5]) + lines[5][:20])  # cut while line 6 was written
    reads.clear()
    again = read(folder, tmp_path / "cache")
    assert len(reads) == 1 + len(lines) - 5 + 1, "the sample, those that were lost, the broken one"
    assert torch.equal(again.train.images, read(folder, None).train.images)
    assert len(index.read_bytes().splitlines()) == len(lines)


def test_a_damaged_cache_is_named(folder: Path, tmp_path: Path) -> None:
    read(folder, tmp_path / "cache")
    (place,) = (tmp_path / "cache").iterdir()
    os.truncate(place / "pixels", 100)
    with pytest.raises(OneRoundError, match="damaged") as caught:
        read(folder, tmp_path / "cache")
    assert "Delete" in caught.value.remedy
    (place / "index.jsonl").write_text("{}\n")
    with pytest.raises(OneRoundError, match="index cannot be read"):
        read(folder, tmp_path / "cache")


def test_two_processes_do_not_fill_one_cache(folder: Path, tmp_path: Path) -> None:
    read(folder, tmp_path / "cache")
    (place,) = (tmp_path / "cache").iterdir()
    with FileLock(place / ".lock"), pytest.raises(OneRoundError, match="another process"):
        read(folder, tmp_path / "cache")


def test_other_conversions_are_other_images(folder: Path, tmp_path: Path) -> None:
    read(folder, tmp_path / "cache")
    small = ImageSpec(channels=3, height=8, width=10)
    splits = read_splits(folder, image=small, max_skipped=0.5, cache=tmp_path / "cache")
    assert splits.train.shape == (3, 8, 10)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    other_mean = GRAY.model_copy(update={"mean": (0.2,)})
    read_splits(folder, image=other_mean, max_skipped=0.5, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2, "the normalization comes later"


def test_16_bits(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "images" / "a" / f"{i}.png", 60000 + i, np.uint16)
    save(tmp_path / "images" / "b" / "3.png", 7)
    plain, cached = read(tmp_path / "images", None), read(tmp_path / "images", tmp_path / "cache")
    assert plain.train.dtype == cached.train.dtype == torch.uint16
    assert torch.equal(plain.train.pixels(), cached.train.pixels())
    assert plain.train.pixels()[0].min() == torch.tensor(60000 / 65535)
    assert torch.equal(plain.train.pixels()[3], (torch.arange(64).reshape(1, 8, 8) + 7) / 255)


def test_medmnist_too(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "own.npz", splits())
    plain = read_splits(path, image=GRAY)
    for _ in range(2):
        cached = read_splits(path, image=GRAY, cache=tmp_path / "cache")
        assert torch.equal(plain.train.images, cached.train.images)
        assert torch.equal(plain.test.images, cached.test.images)
    (place,) = (tmp_path / "cache").iterdir()
    count = sum(len(s) for s in (plain.train, plain.val, plain.test) if s is not None)
    assert (place / "pixels").stat().st_size == count * 64, "once"


def test_a_cache_that_cannot_be_written_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OneRoundError, match="cache cannot be written") as caught:
        read(folder, tmp_path / "file")
    assert caught.value.file == str(tmp_path / "file")
