"""The loop over the steps of a stage: measured, reported, resumable, and limited in FLOPs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import nn

from oneround.errors import OneRoundError
from oneround.runs.checkpoint import damaged, load_state, save_state
from oneround.runs.cost import Cost
from oneround.runs.stage import Stage

CHECKPOINT = "checkpoint.pt"
"""Name of the checkpoint in the folder of a stage."""


class Stateful(Protocol):
    """An object whose state a checkpoint can hold, such as a network or an optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """The state, as plain data and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> object:
        """Restore the state that :meth:`state_dict` returned."""


class Loop:
    """Iterates over the remaining steps of a stage, counted from 1, with checkpoints.

    A step of many small ones, such as an epoch, reports its progress as ``within`` and stops
    when the loop is ``over``:

    >>> from oneround.runs.stage import Stage
    >>> loop = Loop(Stage("distillation"), 2)
    >>> for epoch in loop:
    ...     for small in range(10):
    ...         loop.within = small / 10
    ...         if loop.over:
    ...             break

    Args:
        stage: The stage; a checkpoint in its folder also holds its ``cost`` and ``curve``.
        steps: Number of steps.
        parts: Objects whose state a checkpoint holds, by name.
        keep_every: Steps between checkpoints.

    Attributes:
        meter: Measures each piece of work, by ``with loop.meter.step(kind)``.
        within: Finished share of the current step, in [0, 1).
        note: Text beside the progress.

    Raises:
        OneRoundError: the checkpoint is damaged or of another version.
    """

    def __init__(
        self,
        stage: Stage,
        steps: int,
        parts: Mapping[str, Stateful] | None = None,
        *,
        keep_every: int = 1,
    ) -> None:
        self.stage, self.steps, self.parts, self.keep_every = stage, steps, parts or {}, keep_every
        self.done, self.within, self.note = 0, 0.0, ""
        self._path = stage.file(CHECKPOINT)
        self._resume()
        self.meter = stage.meter()

    def __iter__(self) -> Iterator[int]:
        while self.done < self.steps and not self.over:
            yield self.done + 1
            self.done, self.within = self.done + 1, 0.0
            if self.done % self.keep_every == 0 or self.done == self.steps or self.over:
                self._keep()
            self.stage.tell(self.done, self.steps, self.note)
        self.close()

    def close(self) -> None:
        """Update the cost of the stage: FLOPs of all processes, which each do the same number;
        time and memory of this process."""
        self.stage.cost = self.meter.cost.model_copy(update={"flops": self._flops})

    @property
    def over(self) -> bool:
        """Whether the stage has reached its limit of FLOPs."""
        return self._flops >= self.stage.flops

    @property
    def _flops(self) -> int:
        return self.meter.flops * self.stage.fabric.world_size

    @property
    def position(self) -> float:
        """Position in [0, ``steps``] that learning rates follow: the finished steps or, with a
        limit of FLOPs, the spent share of it times ``steps``, whichever is larger."""
        if math.isinf(self.stage.flops):
            return self.done + self.within
        spent = self._flops / self.stage.flops * self.steps
        return min(max(self.done + self.within, spent), self.steps)

    def observe(self, model: nn.Module) -> None:
        """Let the observer of the run look at ``model`` if it is due; not part of the cost."""
        stage = self.stage
        flops = stage.before.flops + self._flops
        last = stage.observed[-1]["flops"] if stage.observed else 0
        if stage.observer is None or not stage.leads or not stage.observer.due(flops, last):
            return
        with self.meter.paused():
            seconds = (stage.before + self.meter.cost).seconds
            seen = stage.observer.look(model)
            stage.observed.append({"flops": flops, "seconds": seconds} | seen)

    def _keep(self) -> None:
        if self._path is not None and self.stage.leads:
            state: dict[str, Any] = {name: part.state_dict() for name, part in self.parts.items()}
            state |= {"step": self.done, "cost": self.meter.cost.model_dump()}
            state |= {"curve": self.stage.curve, "observed": self.stage.observed}
            save_state(self._path, state)

    def _resume(self) -> None:
        """Restore the last checkpoint, if there is one."""
        if self._path is None or not self._path.exists():
            return
        state = load_state(self._path)
        if not state.keys() >= {*self.parts, "step", "cost", "curve", "observed"}:
            raise OneRoundError(
                "this checkpoint was written by another version of OneRound.",
                file=self._path,
                remedy="Resume with that version, or delete the checkpoint to start again.",
            )
        stage = self.stage
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            stage.cost, stage.curve = Cost(**state["cost"]), state["curve"]
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise damaged(self._path) from error
        stage.observed = state["observed"]
        self.done = state["step"]
