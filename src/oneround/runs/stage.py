"""A stage of a run: its folder of finished pieces, seed, device, cost and progress.

Every long function of the package (training, synthesis, adaptation, distillation) takes a stage.
Finished pieces are in its folder; calling the function again with the same inputs reads them,
continues, and gives the same result, bit for bit, as a run that was never interrupted. Random
numbers come from ``stage.generator(piece)``, which depends only on the seed and the piece.
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
    """A seed in [0, 2⁶³) that depends on all ``parts``, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass
class Stage:
    """A part of a run that is measured and can be resumed.

    Attributes:
        name: Name in results and progress, such as ``synthesis``.
        seed: Seed of all random numbers of the stage.
        folder: Folder of finished pieces; ``None``: nothing is kept, so nothing can be resumed.
        fabric: Device, precision and processes.
        callbacks: Called after every step.
        flops: Limit of FLOPs, at which the stage stops.
        before: Cost of the stages before this one.
        cost: Cost of the stage, without interruptions.
        curve: Log of the stage: one dict of numbers for each logged step.
        observed: Measurements of an observer: one dict each, with ``flops`` and ``seconds`` since
            the start of the run.

    Raises:
        OneRoundError: the precision is 16-mixed, which scales the loss.
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
                "precision 16-mixed scales losses, which image synthesis and checkpoints do not "
                "support.",
                remedy="Use bf16-mixed, which needs no scaling, or 32-true.",
            )

    def generator(self, *piece: object) -> torch.Generator:
        """Source of randomness for one piece of the stage, on the CPU."""
        return torch.Generator().manual_seed(derived_seed(self.seed, self.name, *piece))

    def meter(self) -> Meter:
        """A meter that continues from the cost so far."""
        return Meter(self.cost)

    def file(self, name: str) -> Path | None:
        """Path of the piece ``name`` in the folder, which is created; ``None`` without a folder."""
        if self.folder is None:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name

    @property
    def leads(self) -> bool:
        """Whether this process writes files; exactly one process of a run does."""
        return self.fabric.global_rank == 0

    def mine(self, batch: torch.Tensor) -> torch.Tensor:
        """This process's share of a batch, by its first dimension; with one process, all of it.

        Raises:
            OneRoundError: the batch cannot be divided equally among the processes.
        """
        world = self.fabric.world_size
        if len(batch) % world:
            raise OneRoundError(
                f"a batch of {len(batch)} cannot be divided equally among {world} processes.",
                remedy="Set batch_size to a multiple of the number of processes.",
            )
        return batch.tensor_split(world)[self.fabric.global_rank]

    def tell(self, done: int, total: int, note: str = "") -> None:
        """Report progress to the callbacks."""
        for callback in self.callbacks if self.leads else ():
            callback.on_progress(self.name, done, total, note)

    def log(self, entry: dict[str, Any]) -> None:
        """Add an entry to the curve, and report it to the callbacks."""
        self.curve.append(entry)
        self.show(entry)

    def show(self, entry: dict[str, Any]) -> None:
        """Report an entry of the curve to the callbacks."""
        for callback in self.callbacks if self.leads else ():
            callback.on_log(self.name, entry)

    @property
    def observer(self) -> Observer | None:
        """The callback that measures the student during the run, if there is one."""
        return next((c for c in self.callbacks if isinstance(c, Observer)), None)
