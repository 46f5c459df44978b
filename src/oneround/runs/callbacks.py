"""Callbacks that watch a run: its progress, its logs, its student. None of them changes a
result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

Progress = Callable[[str, int, int, str], None]
"""``progress(stage, done, total, note)``, called after every step."""


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Show no progress."""


class Callback:
    """Watches a run; override what you need. Called only in the process that writes files."""

    def on_progress(self, stage: str, done: int, total: int, note: str) -> None:
        """Called after every step.

        Args:
            stage: Name of the stage, such as ``synthesis``.
            done: Number of finished steps.
            total: Number of all steps of the stage.
            note: Text to show beside the progress; may be empty.
        """

    def on_log(self, stage: str, entry: Mapping[str, Any]) -> None:
        """Called after every step that is logged, with its entry in ``curves.json``.

        Args:
            stage: Name of the stage.
            entry: Numbers by name, such as ``step``, ``loss`` and ``learning_rate``.
        """


@dataclass(frozen=True)
class Observer(Callback):
    """Measures the student during a run, each time its cost has doubled.

    Attributes:
        look: Function from a network to named numbers, such as its accuracy on test images.
            Nothing may be selected by them.
        first: FLOPs of the run at the first measurement.
    """

    look: Callable[[nn.Module], dict[str, float]]
    first: float = 1e11

    def due(self, flops: float, last: float) -> bool:
        """Whether to measure now, at ``flops``, if the last measurement was at ``last``."""
        return self._mark(flops) > self._mark(last)

    def _mark(self, flops: float) -> int:
        return int(math.log2(flops / self.first)) + 1 if flops >= self.first else 0


def progress_of(callbacks: Sequence[Callback]) -> Progress:
    """A function that reports progress outside a run, as of a transfer, to all ``callbacks``."""

    def tell(stage: str, done: int, total: int, note: str) -> None:
        for callback in callbacks:
            callback.on_progress(stage, done, total, note)

    return tell
