"""Where the pixels of a data set are while it is read and used: in memory, or in a file on disk."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from oneround.errors import OneRoundError

FULL_SCALE = {torch.uint8: 255, torch.uint16: 65535, torch.float32: 1}
"""Types of stored pixels, and the value that is 1 as a ``float32`` pixel."""

MOST_OF_MEMORY = 0.8
"""Share of the free memory that the images of a data set may take."""

CONTAINER = Path("/sys/fs/cgroup")
"""Where a container says how much memory it has (Linux, control groups of version 2)."""


def to_stored(images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Images, ``uint8`` or ``float32`` in [0, 1], rounded to ``dtype``, ``uint8`` or ``uint16``."""
    if images.dtype == dtype:
        return images
    if images.dtype == torch.uint8:  # 255 · 257 = 65535
        return (images.int() * 257).to(dtype)
    return (images * FULL_SCALE[dtype]).round_().int().to(dtype)


class DiskPixels:
    """Images in a file, read when they are indexed: what is not in use needs no memory.

    Args:
        path: File of the pixels, N images of (C, H, W) one after another.
        count: Number of images N.
        shape: (C, H, W).
        dtype: ``uint8`` or ``uint16``.
    """

    def __init__(
        self, path: Path, count: int, shape: tuple[int, int, int], dtype: torch.dtype
    ) -> None:
        self.shape, self.dtype = (count, *shape), dtype
        kind = np.uint8 if dtype == torch.uint8 else np.uint16
        self._bytes: mmap.mmap | None = None
        self._array = np.zeros(self.shape, kind)
        if count:
            with path.open("rb") as file:
                size = count * int(np.prod(shape)) * dtype.itemsize
                self._bytes = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
            self._array = np.frombuffer(self._bytes, kind).reshape(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: torch.Tensor | slice) -> torch.Tensor:
        """A copy of these images, (B, C, H, W)."""
        chosen = indices if isinstance(indices, slice) else indices.numpy()
        found = self._array[chosen]
        images = torch.from_numpy(found.copy() if isinstance(indices, slice) else found)
        if self._bytes is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._bytes.madvise(mmap.MADV_DONTNEED)  # else all that was ever read stays in memory
        return images


class MemoryStore:
    """Images in memory, in one piece that grows without being copied where the system can.

    Args:
        expected: Number of images that are expected.
        shape: (C, H, W).
        dtype: ``uint8`` or ``uint16``.
    """

    def __init__(self, expected: int, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        kind = np.uint8 if dtype == torch.uint8 else np.uint16
        self._dtype, self._count = dtype, 0
        with enough_memory():
            self._array = np.empty((expected, *shape), kind)

    def append(self, images: torch.Tensor) -> range:
        """Keep images, (F, C, H, W); their positions."""
        rows = range(self._count, self._count + len(images))
        if rows.stop > len(self._array):
            with enough_memory():
                size = max(rows.stop, len(self._array) + len(self._array) // 8)
                self._array.resize((size, *self._array.shape[1:]), refcheck=False)
        self._array[rows.start : rows.stop] = to_stored(images, self._dtype).numpy()
        self._count = rows.stop
        return rows

    def pixels(self) -> torch.Tensor:
        """All images, (N, C, H, W)."""
        return torch.from_numpy(self._array[: self._count])


@contextmanager
def enough_memory() -> Iterator[None]:
    """Raise :class:`OneRoundError` in place of an error of memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise _not_enough(None, None) from error
        raise


def require_memory(needed: int) -> None:
    """Check that ``needed`` bytes of images fit into memory, with room for the rest.

    Raises:
        OneRoundError: they do not.
    """
    if needed > MOST_OF_MEMORY * (free := free_memory()):
        raise _not_enough(needed, free)


def _not_enough(needed: int | None, free: int | None) -> OneRoundError:
    """The error for a data set that does not fit into memory."""
    what = "there is not enough memory for its images."
    if needed and free:
        what = f"its images need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free."
    return OneRoundError(
        what,
        remedy="Give --cache FOLDER (in Python, cache=): the images are then kept in a file there, "
        "and read from it as they are used.",
    )


def free_memory() -> int:
    """Bytes of memory that this process may still take: of the machine, and of its container."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit = int((CONTAINER / "memory.max").read_text())
        stat = dict(line.split() for line in (CONTAINER / "memory.stat").read_text().splitlines())
        used = int((CONTAINER / "memory.current").read_text()) - int(stat["file"])
    except (OSError, ValueError, KeyError):  # no such limit
        return free
    return min(free, max(0, limit - used))
