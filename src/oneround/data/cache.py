"""Images of a data set kept on disk as the study needs them, so that they need not fit in memory.

A cache is a folder with one folder for each way to convert images (:class:`ImageSpec` and depth),
in which ``pixels`` has the images one after another and ``index.jsonl`` a line for each file that
was read. A file is known again by the SHA-256 of its content, which is computed again only if its
size, times or inode have changed. What was written when a process was killed is kept up to the
last line of the index.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from oneround.data.store import DiskPixels, to_stored
from oneround.errors import OneRoundError
from oneround.files import sha256
from oneround.study import ImageSpec

VERSION = 2
"""Of the readers and of this format: another one starts a new cache."""

SECONDS_BETWEEN_WRITES = 5.0


@dataclass(frozen=True)
class Key:
    """What a file is known by.

    Attributes:
        file: Absolute path, and the part of the file that this is, if it has parts.
        stat: Size in bytes, times of modification and change in ns, and inode.
        sha256: Of its content, and of the name of the part.
    """

    file: str
    stat: tuple[int, int, int, int]
    sha256: str


@dataclass(frozen=True)
class Facts:
    """What a file says beside its images.

    Attributes:
        patient: Hash of the identifier of its patient, if it names one.
        notices: What the site should know about it, in sentences that are equal for equal things.
        top: Brightest value as share of the full scale, of pictures with more than 8 bits.
    """

    patient: str | None = None
    notices: tuple[str, ...] = ()
    top: float | None = None


@dataclass(frozen=True)
class Entry(Key):
    """What is known of one file, a line of the index.

    Attributes:
        row: Position of its first image.
        frames: Number of its images.
        facts: What it says beside them.
    """

    row: int
    frames: int
    facts: Facts

    @property
    def rows(self) -> range:
        """Positions of its images."""
        return range(self.row, self.row + self.frames)


class Cache:
    """The images of one :class:`ImageSpec` and depth in a cache; use :func:`opened`."""

    def __init__(self, folder: Path, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        self._pixels, self._index = folder / "pixels", folder / "index.jsonl"
        self._shape, self._dtype = shape, dtype
        self._size = int(np.prod(shape)) * dtype.itemsize
        entries = list(_read_index(self._index))
        self._by_file = {entry.file: entry for entry in entries}
        self._by_content = {entry.sha256: entry for entry in entries}
        self._unwritten: list[Entry] = []
        self._count = max((entry.rows.stop for entry in entries), default=0)
        self._pixels.touch(mode=0o600)
        if self._pixels.stat().st_size < self._count * self._size:
            raise OneRoundError(
                "the cache is damaged: its images are fewer than its index says.",
                file=self._pixels,
                remedy="Delete this folder; the next run fills it again.",
            )
        os.truncate(self._pixels, self._count * self._size)
        self._file = self._pixels.open("ab")
        self._written = time.monotonic()

    def key(self, path: Path, part: str = "") -> Key:
        """What a file is known by now; any thread may ask.

        Raises:
            OSError: it cannot be read.
        """
        name, stat = f"{os.path.abspath(path)}{':' * bool(part)}{part}", _stat(path)
        known = self._by_file.get(name)
        same = known is not None and known.stat == stat
        return Key(name, stat, known.sha256 if known and same else _content(path, part))

    def find(self, key: Key) -> Entry | None:
        """What is known of a file, if a file of the same content was read before."""
        known = self._by_content.get(key.sha256)
        if known and (known.file, known.stat) != (key.file, key.stat):
            known = replace(known, file=key.file, stat=key.stat)
        return known

    def keep(self, key: Key, parts: Iterable[torch.Tensor], facts: Facts) -> Entry:
        """Keep the images of a file, (F, C, H, W) each part, and remember it."""
        row = self._count
        for part in parts:
            self._append(part)
        entry = Entry(key.file, key.stat, key.sha256, row, self._count - row, facts)
        self.add(entry)
        return entry

    def _append(self, images: torch.Tensor) -> None:
        self._file.write(to_stored(images, self._dtype).contiguous().numpy().data)
        self._count += len(images)

    def add(self, entry: Entry) -> None:
        """Remember a file; some seconds later at most it is on the disk."""
        if self._by_file.get(entry.file) == entry:
            return
        self._by_file[entry.file] = self._by_content[entry.sha256] = entry
        self._unwritten.append(entry)
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self.write()

    def write(self) -> None:
        """Write what was added since the last time: images first, then the index."""
        self._file.flush()
        os.fsync(self._file.fileno())
        with open(self._index, "a", encoding="utf-8", opener=_private) as index:
            index.writelines(json.dumps(asdict(entry)) + "\n" for entry in self._unwritten)
            index.flush()
            os.fsync(index.fileno())
        self._unwritten, self._written = [], time.monotonic()

    def pixels(self) -> DiskPixels:
        """All images in the cache, of this data set and of others."""
        self._file.flush()
        return DiskPixels(self._pixels, self._count, self._shape, self._dtype)

    def close(self) -> None:
        """Write what is left."""
        self.write()
        self._file.close()


@contextmanager
def opened(folder: Path, image: ImageSpec, dtype: torch.dtype) -> Iterator[Cache]:
    """The cache in a folder for one kind of images; other processes wait outside.

    Raises:
        OneRoundError: another process is filling it, it is damaged, or the folder cannot be used.
    """
    kind = json.dumps([VERSION, image.model_dump(mode="json", exclude={"mean", "std"}), str(dtype)])
    place = folder / sha256(kind.encode())[:16]
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(place / ".lock", timeout=0):
            cache = Cache(place, image.shape, dtype)
            try:
                yield cache
            finally:
                cache.close()
    except Timeout as error:
        raise OneRoundError(
            "another process is filling this cache.",
            file=folder,
            remedy="Wait until it has finished, or give another --cache.",
        ) from error
    except OSError as error:
        raise OneRoundError(
            f"the cache cannot be written: {error.strerror or error}.",
            file=folder,
            remedy="Make room or give another --cache; what is in it already is kept.",
        ) from error


def _read_index(path: Path) -> Iterator[Entry]:
    """The lines of an index; a last line that was cut is dropped, in the file too."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(path, len(whole))
    try:
        for line in whole.splitlines():
            values = json.loads(line)
            facts = values["facts"]
            facts = Facts(facts["patient"], tuple(facts["notices"]), facts["top"])
            yield Entry(**values | {"stat": tuple(values["stat"]), "facts": facts})
    except (ValueError, TypeError, KeyError) as error:
        raise OneRoundError(
            f"the cache is damaged: its index cannot be read ({error}).",
            file=path,
            remedy="Delete this folder; the next run fills it again.",
        ) from error


def _stat(path: Path) -> tuple[int, int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _content(path: Path, part: str) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(b"\0" + part.encode())
    return digest.hexdigest()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
