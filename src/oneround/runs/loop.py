"""The steps of a stage: metered, shown, kept, and stopped when its FLOPs are spent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import nn

from oneround.errors import OneRoundError
from oneround.runs.checkpoint import load_state, save_state
from oneround.runs.cost import Cost
from oneround.runs.stage import Stage

CHECKPOINT = "checkpoint.pt"
"""Name of the checkpoint in the folder of a stage."""


class Stateful(Protocol):
    """What can be kept in a checkpoint: a network, an optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> object:
        """Take up what :meth:`state_dict` gave."""


class Loop:
    """Iterates over the steps (from 1) that are still to be done.

    A step that contains many small ones, such as an epoch, says how far it is by ``within``,
    and leaves off when the loop is ``over``:

    >>> from oneround.stage import Stage
    >>> loop = Loop(Stage("distillation"), 2)
    >>> for epoch in loop:
    ...     for small in range(10):
    ...         loop.within = small / 10
    ...         if loop.over:
    ...             break

    Args:
        stage: where the checkpoint is kept; its ``cost`` and ``curve`` are kept with it.
        steps: how many there are.
        parts: what a checkpoint holds.
        keep_every: steps between checkpoints.

    Attributes:
        meter: measure every piece of work with ``with loop.meter.step(kind)``.
        within: share of the current step that is done, in [0, 1).
        note: shown beside the progress.
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
        """Take down what the stage has cost until now: the FLOPs of all processes, which do the
        same number, and the time and memory of this one."""
        self.stage.cost = self.meter.cost.model_copy(update={"flops": self._flops})

    @property
    def over(self) -> bool:
        """Whether the FLOPs that the stage may spend are spent."""
        return self._flops >= self.stage.flops

    @property
    def _flops(self) -> int:
        return self.meter.flops * self.stage.fabric.world_size

    @property
    def position(self) -> float:
        """Steps done, in [0, ``steps``]; where FLOPs are what ends the loop, the share of them
        that is spent times ``steps``. Learning rates follow it."""
        if math.isinf(self.stage.flops):
            return self.done + self.within
        spent = self._flops / self.stage.flops * self.steps
        return min(max(self.done + self.within, spent), self.steps)

    def observe(self, model: nn.Module) -> None:
        """Let the run's observer look at ``model``, when it is time; not part of the cost."""
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
        """Take up the last checkpoint, if there is one."""
        if self._path is None or not self._path.exists():
            return
        state = load_state(self._path)
        if not state.keys() >= {*self.parts, "step", "cost", "curve", "observed"}:
            raise OneRoundError(
                "this checkpoint is of another version of oneround.",
                file=self._path,
                remedy="Continue with that version, or delete the checkpoint to start again.",
            )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        stage = self.stage
        stage.cost, stage.curve = Cost(**state["cost"]), state["curve"]
        stage.observed = state["observed"]
        self.done = state["step"]
