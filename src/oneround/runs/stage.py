"""A stage of a run: where it keeps its finished pieces, its seed, device and progress.

Every long function of the package (training, synthesis, adaptation, distillation) takes one.
What a stage has finished lies in its folder; calling the function again with the same inputs
reads that and goes on, and ends bit-equal to a run that was never interrupted. Randomness
comes from ``stage.generator(piece)``, which depends on the seed and the piece alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from oneround.errors import OneRoundError
from oneround.runs.cost import Cost, Meter

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Progress = Callable[[str, int, int, str], None]
"""``progress(stage, done, total, note)``, called often."""


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Show no progress."""


def cpu() -> Fabric:
    """The default device: this process, on the CPU, in single precision."""
    from lightning_fabric import Fabric  # takes seconds to import

    return Fabric(accelerator="cpu", devices=1)


def derived_seed(*parts: object) -> int:
    """A seed in [0, 2⁶³) that depends on all ``parts``; equal on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class Observer:
    """Looks at a student on its way, at costs that double from one look to the next.

    Attributes:
        look: what is to be known of a network, such as its accuracy on test images. Nothing may
            be chosen by it.
        first: FLOPs of the run at which it looks for the first time.
    """

    look: Callable[[nn.Module], dict[str, float]]
    first: float = 1e11

    def due(self, flops: float, last: float) -> bool:
        """Whether to look, now that ``flops`` are spent; the last look was at ``last``."""
        return self._mark(flops) > self._mark(last)

    def _mark(self, flops: float) -> int:
        return int(math.log2(flops / self.first)) + 1 if flops >= self.first else 0


@dataclass
class Stage:
    """One stage.

    Attributes:
        name: what it is called in results and progress, e.g. ``"synthesis"``.
        seed: of all randomness of this stage.
        folder: where finished pieces are kept; ``None``: nowhere, and nothing can be resumed.
        fabric: device, precision and processes.
        progress: told about every step.
        flops: what it may spend; it stops when that is spent.
        before: what the stages before it have cost.
        observer: looks at the student on its way; what it saw is in ``observed``.
        cost: what the stage has cost, interruptions left out.
        curve: its log: one dict of numbers for each logged step.
        observed: one dict for each look: ``flops`` and ``seconds`` since the start of the run,
            and what the observer saw.

    Raises:
        OneRoundError: mixed precision with a scaled loss.
    """

    name: str
    seed: int = 0
    folder: Path | None = None
    fabric: Fabric = field(default_factory=cpu)
    progress: Progress = silent
    flops: float = math.inf
    before: Cost = field(default_factory=Cost)
    observer: Observer | None = None
    cost: Cost = field(default_factory=Cost)
    curve: list[dict[str, Any]] = field(default_factory=list)
    observed: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.fabric.strategy.precision.precision == "16-mixed":
            raise OneRoundError(
                "precision 16-mixed scales losses, which images that are being synthesized and "
                "checkpoints know nothing of.",
                remedy="Use bf16-mixed, which needs no scaling, or 32-true.",
            )

    def generator(self, *piece: object) -> torch.Generator:
        """A CPU generator for one piece of this stage."""
        return torch.Generator().manual_seed(derived_seed(self.seed, self.name, *piece))

    def meter(self) -> Meter:
        """A meter that goes on from the cost so far."""
        return Meter(self.cost)

    def file(self, name: str) -> Path | None:
        """Where a piece called ``name`` is kept; from now on there is a folder for it."""
        if self.folder is None:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files; one is, among those of a run."""
        return self.fabric.global_rank == 0

    def mine(self, batch: torch.Tensor) -> torch.Tensor:
        """The part of a batch that is this process's work; with one process all of it.

        Raises:
            OneRoundError: the batch cannot be divided equally.
        """
        world = self.fabric.world_size
        if len(batch) % world:
            raise OneRoundError(
                f"a batch of {len(batch)} cannot be divided equally among {world} processes.",
                remedy="Set a batch_size that the number of processes divides.",
            )
        return batch.tensor_split(world)[self.fabric.global_rank]

    def tell(self, done: int, total: int, note: str = "") -> None:
        """Report progress."""
        if self.leads:
            self.progress(self.name, done, total, note)
