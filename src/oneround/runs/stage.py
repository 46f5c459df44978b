"""A stage of a run: where it keeps its finished pieces, its seed, device and progress.

Every long function of the package (training, synthesis, adaptation, distillation) takes one.
What a stage has finished lies in its folder; calling the function again with the same inputs
reads that and goes on, and ends bit-equal to a run that was never interrupted. Randomness
comes from ``stage.generator(piece)``, which depends on the seed and the piece alone.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from oneround.errors import OneRoundError
from oneround.runs.callbacks import Callback, Observer
from oneround.runs.cost import Cost, Meter
from oneround.runs.device import cpu

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def derived_seed(*parts: object) -> int:
    """A seed in [0, 2⁶³) that depends on all ``parts``; equal on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass
class Stage:
    """One stage.

    Attributes:
        name: what it is called in results and progress, e.g. ``"synthesis"``.
        seed: of all randomness of this stage.
        folder: where finished pieces are kept; ``None``: nowhere, and nothing can be resumed.
        fabric: device, precision and processes.
        callbacks: watch every step.
        flops: what it may spend; it stops when that is spent.
        before: what the stages before it have cost.
        cost: what the stage has cost, interruptions left out.
        curve: its log: one dict of numbers for each logged step.
        observed: one dict for each look of an observer: ``flops`` and ``seconds`` since the start
            of the run, and what it saw.

    Raises:
        OneRoundError: mixed precision with a scaled loss.
    """

    name: str
    seed: int = 0
    folder: Path | None = None
    fabric: Fabric = field(default_factory=cpu)
    callbacks: tuple[Callback, ...] = ()
    flops: float = math.inf
    before: Cost = field(default_factory=Cost)
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
        """Report progress to the callbacks."""
        for callback in self.callbacks if self.leads else ():
            callback.on_progress(self.name, done, total, note)

    def log(self, entry: dict[str, Any]) -> None:
        """Add a row to the curve, and show it to the callbacks."""
        self.curve.append(entry)
        self.show(entry)

    def show(self, entry: dict[str, Any]) -> None:
        """Show a row of the curve to the callbacks."""
        for callback in self.callbacks if self.leads else ():
            callback.on_log(self.name, entry)

    @property
    def observer(self) -> Observer | None:
        """The callback that looks at the student on its way, if there is one."""
        return next((c for c in self.callbacks if isinstance(c, Observer)), None)
