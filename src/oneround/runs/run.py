"""A run and its RUN folder: configuration, stages, log, and one process at a time."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from filelock import FileLock, Timeout

from oneround.errors import OneRoundError
from oneround.files import read_json, write_atomic, write_json
from oneround.runs.callbacks import Callback
from oneround.runs.cost import Cost
from oneround.runs.device import cpu
from oneround.runs.stage import Stage
from oneround.schema import now

if TYPE_CHECKING:
    from lightning_fabric import Fabric

TRAINING = "training"
"""Stage of client training, which is not part of a method."""

CROSS_CHECK = "cross-check"
"""Stage of the coordinator's cross-check of the client models, which is none of a method either."""

PROGRESS = "progress.json"
"""File in the RUN folder with the last step that was reported; no result depends on it."""

_LOCK = ".lock"

log = logging.getLogger("oneround")


@dataclass(frozen=True)
class Kept:
    """Part of an earlier run that a run which extends it finds in its folder.

    Attributes:
        shards: Number of shards of the image bank, the first ones, that are there.
        added: Sites whose client models these shards were made without.
    """

    shards: int = 0
    added: tuple[str, ...] = ()


class Run:
    """A run that keeps its work in a folder, to which no other process may write meanwhile.

    Use it in a ``with`` statement.

    Args:
        path: RUN folder, created if it does not exist. ``None``: nothing is kept, so nothing can
            be resumed.
        configuration: Everything that decides the result, as JSON content.
        seed: Seed of all stages.
        resume: Whether to continue the run that is in the folder.
        fabric: Device, precision and processes; the CPU by default.
        callbacks: Called after every step of every stage; :meth:`observed` returns the
            measurements of an observer among them.
        flops: Limit of FLOPs of the method; training at the sites does not count.
        simulated: Images of the sites of a simulation, for methods that need them; see
            :class:`oneround.methods.SimulatedSites`.
        kept: Part of an earlier run that this one extends.

    Raises:
        OneRoundError: another process works in the folder; it holds a run and ``resume`` is
            false; or it holds a run with another configuration.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        configuration: Mapping[str, Any],
        *,
        seed: int = 0,
        resume: bool = False,
        fabric: Fabric | None = None,
        callbacks: Sequence[Callback] = (),
        flops: float = math.inf,
        simulated: object = None,
        kept: Kept = Kept(),
    ) -> None:
        self.path = None if path is None else Path(path)
        self.configuration = dict(configuration)
        self.seed, self.resume = seed, resume
        self.fabric = fabric or cpu()
        self.callbacks = tuple(callbacks)
        self.flops, self.simulated, self.kept = flops, simulated, kept
        self.stages: dict[str, Stage] = {}
        self._lock: FileLock | None = None
        self._handler: logging.Handler | None = None

    def __enter__(self) -> Self:
        if self.path is None and self.fabric.world_size > 1:
            raise OneRoundError(
                "several processes share their work through a RUN folder, and none is given.",
                remedy="Give a folder as out.",
            )
        if self.path is not None and self.leads:
            self._open(self.path)
        try:
            self.fabric.barrier()
        except RuntimeError as error:
            raise self._lost(error) from error
        return self

    def _open(self, path: Path) -> None:
        """Create and lock the folder, and start the log."""
        lock = FileLock(path / _LOCK)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0.5)  # :func:`is_working` may hold it for a moment
        except Timeout as error:
            raise OneRoundError(
                "another process is working in this folder.",
                file=path,
                remedy="Wait until it is done, or choose another --out.",
            ) from error
        except OSError as error:
            raise OneRoundError(
                f"cannot be used as RUN folder: {error.strerror}.",
                file=path,
                remedy="Choose a folder that you can write to as --out.",
            ) from error
        try:
            self._check_configuration(path)
        except BaseException:
            lock.release()
            if not (path / "configuration.json").exists():
                Path(lock.lock_file).unlink(missing_ok=True)  # not a RUN folder: leave no trace
            raise
        self._lock = lock
        self.callbacks = (_ProgressFile(path / PROGRESS), *self.callbacks)
        self._handler = logging.FileHandler(path / "log.txt", encoding="utf-8")
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(self._handler)
        self.say("resumed" if self.resume else "started")

    def _lost(self, error: RuntimeError) -> OneRoundError:
        """The error of a process when another process of the run has ended."""
        reason = str(error).partition(". ")[0].rpartition("] ")[2]
        return OneRoundError(
            f"the connection to another process of this run was lost ({reason}).",
            file=self.path,
            remedy="Read the error of that process, then run the same command with --resume.",
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.say("finished")
        else:
            self.say(f"stopped: {str(error) or type(error).__name__}", logging.ERROR)
        if self._handler is not None:
            log.removeHandler(self._handler)
            self._handler.close()
        if self._lock is not None:
            self._lock.release()
        lost = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
        if isinstance(error, RuntimeError) and lost and self.fabric.world_size > 1:
            raise self._lost(error) from error

    def stage(self, name: str, part: str = "", *, folder: str = "", share: float = 1) -> Stage:
        """Begin a stage, or one ``part`` of it (such as a site), kept in ``RUN/folder/part``.

        Args:
            name: Name of the stage in results and progress.
            part: Part of the stage, with a log of its own.
            folder: Folder in the RUN folder; ``name`` by default.
            share: Share of the remaining FLOPs that the stage may spend, in (0, 1].
        """
        key = f"{name}/{part}" if part else name
        before = self.spent()
        self.stages[key] = Stage(
            name,
            self.seed,
            None if self.path is None else self.path / (folder or name) / part,
            self.fabric,
            self.callbacks,
            flops=max(0, self.flops - before.flops) * share,
            before=before,
        )
        self.say(f"stage {key}")
        return self.stages[key]

    @property
    def leads(self) -> bool:
        """Whether this process writes files; exactly one process of a run does."""
        return self.fabric.global_rank == 0

    def spent(self) -> Cost:
        """Cost of the method so far, without training at the sites and without the cross-check."""
        others = (TRAINING, CROSS_CHECK)
        return sum((s.cost for s in self.stages.values() if s.name not in others), Cost())

    def say(self, message: str, level: int = logging.INFO) -> None:
        """Write a line to the log of the RUN folder, whatever level the application logs at."""
        if self._handler is not None:
            self._handler.handle(log.makeRecord(log.name, level, __file__, 0, message, (), None))

    def observed(self) -> list[dict[str, float]]:
        """Measurements of the observer in all stages, in order; see :attr:`Stage.observed`."""
        return [entry for stage in self.stages.values() for entry in stage.observed]

    def costs(self) -> dict[str, Cost]:
        """Cost of each stage, summed over its parts, by name."""
        costs: dict[str, Cost] = {}
        for key, stage in self.stages.items():
            name = key.partition("/")[0]
            costs[name] = costs.get(name, Cost()) + stage.cost
        return costs

    def curves(self) -> dict[str, Any]:
        """Curve of each stage by name; for a stage in parts, one curve for each part."""
        curves: dict[str, Any] = {}
        for key, stage in self.stages.items():
            name, _, part = key.partition("/")
            if part:
                curves.setdefault(name, {})[part] = stage.curve
            else:
                curves[name] = stage.curve
        return curves

    def _check_configuration(self, folder: Path) -> None:
        """Write the configuration of a new run, or compare it with that of the present one."""
        path = folder / "configuration.json"
        if not path.exists():
            others = [p.name for p in folder.iterdir() if not p.name.startswith(".")]
            if others:
                raise OneRoundError(
                    f"the folder is not empty and holds no run ({sorted(others)[0]}, …).",
                    file=folder,
                    remedy="Choose a new folder as --out.",
                )
            write_json(path, self.configuration)
            return
        if not self.resume:
            raise OneRoundError(
                "the folder already holds a run.",
                file=folder,
                remedy="Add --resume to continue it, or choose another --out.",
            )
        different = sorted(_differences(read_json(path), self.configuration))
        if different:
            raise OneRoundError(
                f"the run in this folder was started with other options: {', '.join(different)}.",
                file=path,
                remedy="Give the same options as the first time, or choose another --out.",
            )


class _ProgressFile(Callback):
    """Writes the progress to a file, at most once a second."""

    def __init__(self, path: Path) -> None:
        self._path, self._last = path, -math.inf

    def on_progress(self, stage: str, done: int, total: int, note: str) -> None:
        """Write the step if the last one was written a second ago or more."""
        if time.monotonic() - self._last < 1:
            return
        self._last = time.monotonic()
        step = {"stage": stage, "done": done, "total": total, "note": note}
        with suppress(OneRoundError):  # a run continues without it
            content = json.dumps(step | {"time": now().isoformat()}).encode()
            write_atomic(self._path, content, durable=False)


def is_working(path: Path) -> bool:
    """Whether a process is working in the RUN folder ``path`` now. Writes nothing."""
    lock = path / _LOCK
    if not lock.is_file():
        return False
    try:  # others who look hold it for a moment, a run all the time
        with FileLock(lock, timeout=0.1, poll_interval=0.01):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def _differences(old: Any, new: Any, prefix: str = "") -> set[str]:
    """Names of the options that differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        found = [_differences(old.get(k), new.get(k), f"{prefix}.{k}".lstrip(".")) for k in keys]
        return set().union(*found)
    return set() if old == new else {prefix}


def environment() -> dict[str, str]:
    """Versions of the packages that results depend on, and the number of threads, by name."""
    import platform
    from importlib.metadata import version

    packages = ("oneround", "torch", "monai", "lightning-fabric", "numpy", "safetensors")
    threads = {"threads": str(torch.get_num_threads())}
    return {"python": platform.python_version()} | {p: version(p) for p in packages} | threads
