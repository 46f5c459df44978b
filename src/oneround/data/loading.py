"""Read many image files: on all cores, in order, with progress, into memory or a cache."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch

from oneround.data import cache as caches
from oneround.data.cache import Cache, Entry, Facts, Key
from oneround.data.images import fit, read_file
from oneround.data.store import DiskPixels, MemoryStore, require_memory
from oneround.errors import OneRoundError
from oneround.runs.callbacks import Progress, silent
from oneround.study import ImageSpec

SAMPLE = 32  # files that are looked at before all are read
SHORT = 5.0  # seconds: reading that takes less shows no progress
THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Loaded:
    """What was read of one file.

    Attributes:
        rows: Positions of its images.
        facts: What it says beside them.
    """

    rows: range
    facts: Facts


@dataclass(frozen=True)
class LoadedFiles:
    """What was read of many files.

    Attributes:
        files: For each file what was read of it, or why it could not be read.
        pixels: Images, (N, C, H, W), ``uint8`` or ``uint16``.
    """

    files: list[Loaded | str]
    pixels: torch.Tensor | DiskPixels


def load(
    paths: Sequence[Path], image: ImageSpec, cache: Path | None, on_progress: Progress
) -> LoadedFiles:
    """Read image files as images of ``image.shape``.

    They are stored with 16 bits if a file in an evenly spaced sample has more than 8, else with 8.

    Args:
        paths: Files.
        image: Channels and size to convert to.
        cache: Folder of a cache; ``None``: in memory.
        on_progress: Called for every file, with an estimate at first, if it takes long.

    Raises:
        OneRoundError: they do not fit into memory, or the cache cannot be used.
    """
    sample = _look_ahead(paths, image)
    needed = round(len(paths) * sample.frames) * prod(image.shape) * sample.dtype.itemsize
    if cache is None:
        require_memory(needed)
    if sample.seconds < SHORT:
        on_progress = silent
    on_progress("reading", 0, len(paths), f"some {_time(sample.seconds)}, {needed / 1e9:.2g} GB")
    memory = MemoryStore(len(paths) if cache is None else 0, image.shape, sample.dtype)
    opened = caches.opened(cache, image, sample.dtype) if cache else nullcontext()
    files: list[Loaded | str] = []
    with opened as kept:
        for key, found in _all_read(paths, image, kept):
            if isinstance(found, _Read):
                facts = _with_rounding(found, sample.dtype)
                if kept and key:
                    files.append(Loaded(kept.keep(key, [found.images], facts).rows, facts))
                else:
                    files.append(Loaded(memory.append(found.images), facts))
            elif isinstance(found, Entry):
                assert kept is not None, "it is from the cache"
                kept.add(found)
                files.append(Loaded(found.rows, found.facts))
            else:
                files.append(found)
            on_progress("reading", len(files), len(paths), "")
        return LoadedFiles(files, (kept or memory).pixels())


@dataclass(frozen=True)
class _Read:
    """Images of one file, fitted, and what it says beside them."""

    images: torch.Tensor
    facts: Facts


@dataclass(frozen=True)
class _Sample:
    """What a sample of files says of all: type to store, images in a file, seconds in all."""

    dtype: torch.dtype
    frames: float
    seconds: float


def _look_ahead(paths: Sequence[Path], image: ImageSpec) -> _Sample:
    start, found = time.monotonic(), []
    sampled = paths[:: -(-len(paths) // SAMPLE) or 1]
    for path in sampled:
        result = _read(path, image)
        if isinstance(result, _Read):
            found.append(result.images)
    deep = any(images.dtype != torch.uint8 for images in found)
    seconds = (time.monotonic() - start) / max(1, len(sampled)) * len(paths) / THREADS
    frames = sum(map(len, found)) / max(1, len(found))
    return _Sample(torch.uint16 if deep else torch.uint8, frames, seconds)


def _all_read(
    paths: Sequence[Path], image: ImageSpec, cache: Cache | None
) -> Iterator[tuple[Key | None, _Read | Entry | str]]:
    """Results in the order of ``paths``; only a few are waiting at any time."""

    def work(path: Path) -> tuple[Key | None, _Read | Entry | str]:
        if cache is None:
            return None, _read(path, image)
        try:
            key = cache.key(path)
        except OSError as error:
            return None, f"{path}: {(error.strerror or str(error)).lower()}"
        return key, cache.find(key) or _read(path, image)

    waiting: deque[Future[tuple[Key | None, _Read | Entry | str]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for path in paths:
            waiting.append(pool.submit(work, path))
            if len(waiting) >= 8 * THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read(path: Path, image: ImageSpec) -> _Read | str:
    """The images of a file, or why it cannot be read."""
    try:
        original = read_file(path, image)
    except OneRoundError as error:
        return f"{path}: {error.reason.rstrip('.')}"
    patient = original.patient and hashlib.sha256(original.patient.encode()).hexdigest()[:32]
    facts = Facts(patient, original.notices, original.top)
    return _Read(fit(original.frames, image), facts)


def _with_rounding(found: _Read, dtype: torch.dtype) -> Facts:
    """The facts of a file, also that it is stored with fewer bits than it has."""
    if found.images.dtype == torch.uint8 or dtype != torch.uint8:
        return found.facts
    notice = "it has more than 8 bits and is rounded to 8, as most of the images have"
    return replace(found.facts, notices=(*found.facts.notices, notice))


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{max(1, seconds):.0f} s"
