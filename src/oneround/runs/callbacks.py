"""What watches a run: its progress, its logs, the student on its way. Nothing of it decides a
result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

Progress = Callable[[str, int, int, str], None]
"""``progress(stage, done, total, note)``, called often."""


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Show no progress."""


class Callback:
    """Watches a run; override what you need. Called in the process that writes files, alone."""

    def on_progress(self, stage: str, done: int, total: int, note: str) -> None:
        """After every step.

        Args:
            stage: Name of the stage, such as ``synthesis``.
            done: Finished steps.
            total: All steps of the stage.
            note: What to show beside the progress; may be empty.
        """

    def on_log(self, stage: str, entry: Mapping[str, Any]) -> None:
        """After every step that is logged: what ``curves.json`` will hold of it.

        Args:
            stage: Name of the stage.
            entry: Numbers by name, such as ``step``, ``loss`` and ``learning_rate``.
        """


@dataclass(frozen=True)
class Observer(Callback):
    """Looks at a student on its way, at costs that double from one look to the next.

    Attributes:
        look: What is to be known of a network, such as its accuracy on test images. Nothing may
            be chosen by it.
        first: FLOPs of the run at the first look.
    """

    look: Callable[[nn.Module], dict[str, float]]
    first: float = 1e11

    def due(self, flops: float, last: float) -> bool:
        """Whether to look, now that ``flops`` are spent; the last look was at ``last``."""
        return self._mark(flops) > self._mark(last)

    def _mark(self, flops: float) -> int:
        return int(math.log2(flops / self.first)) + 1 if flops >= self.first else 0


def progress_of(callbacks: Sequence[Callback]) -> Progress:
    """The progress of work that is no run, such as a transfer, for all ``callbacks``."""

    def tell(stage: str, done: int, total: int, note: str) -> None:
        for callback in callbacks:
            callback.on_progress(stage, done, total, note)

    return tell
