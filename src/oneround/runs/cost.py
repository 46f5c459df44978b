"""Cost of a stage: FLOPs, seconds and peak memory, measured by one meter."""

from __future__ import annotations

import sys
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from pydantic import BaseModel
from torch.utils.flop_counter import FlopCounterMode


class Cost(BaseModel):
    """Cost of a piece of work; the sum of two is the cost of one after the other.

    Attributes:
        flops: Floating point operations of convolutions and matrix products, forward and
            backward; one multiply-add is two.
        seconds: Wall-clock time, in seconds.
        peak_memory_bytes: Highest memory of the process, in bytes; of the GPU if one is used.
    """

    flops: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            flops=self.flops + other.flops,
            seconds=self.seconds + other.seconds,
            peak_memory_bytes=max(self.peak_memory_bytes, other.peak_memory_bytes),
        )


class Meter:
    """Measures cost from its creation on, in addition to the cost ``spent`` before an interruption.

    FLOPs are counted, not estimated: the first step of each kind runs under torch's counter, and
    each further step of that kind adds the same number, so that counting costs almost nothing.
    """

    def __init__(self, spent: Cost | None = None) -> None:
        self._spent = spent or Cost()
        self._flops = 0
        self._flops_of: dict[Hashable, int] = {}
        self._start = time.perf_counter()
        _reset_peak_memory()

    @contextmanager
    def step(self, *kind: Hashable) -> Iterator[None]:
        """Count the FLOPs of this block; blocks of the same ``kind`` must do the same work."""
        if kind in self._flops_of:
            yield
        else:
            with FlopCounterMode(display=False) as counter:
                yield
            self._flops_of[kind] = counter.get_total_flops()
        self._flops += self._flops_of[kind]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of this block out of the cost."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    @property
    def flops(self) -> int:
        """FLOPs so far."""
        return self._spent.flops + self._flops

    @property
    def cost(self) -> Cost:
        """Cost so far."""
        return self._spent + Cost(
            flops=self._flops,
            seconds=time.perf_counter() - self._start,
            peak_memory_bytes=_peak_memory(),
        )


def _reset_peak_memory() -> None:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux only; elsewhere the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> int:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated()
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    with suppress(ImportError):  # Windows does not have it: 0 there
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return 0
