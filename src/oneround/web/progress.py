"""How far a run is, from the files of its RUN folder; another process works in it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from oneround.coordinator.history import Ledger
from oneround.errors import OneRoundError
from oneround.files import read_json
from oneround.report import units
from oneround.runs.run import PROGRESS, is_working
from oneround.schema import Strict, validated

DOWNLOADS = {
    "global.safetensors": "weights of the global model",
    "config.json": "what is needed to use them",
    "model-card.md": "what those who get the model must know",
}
"""Files that may be downloaded from a finished RUN folder, beside the report; never any other."""

REPORT = "report.html"


class Step(Strict):
    """The content of ``progress.json``."""

    stage: str
    done: int
    total: int
    note: str
    time: datetime


@dataclass(frozen=True)
class RunState:
    """What is known of a run.

    Attributes:
        phase: Phase of the run. ``waiting``: nobody has started it; ``stopped``: the process is
            gone and there is no result.
        step: Step that was reported last.
        reason: Why the run stopped, as its log says; empty: the process was killed.
        files: Names of :data:`DOWNLOADS` that are there, and their sizes.
        report: Whether there is a report.
        sites: Sites whose submissions are in the global model, and those that have withdrawn;
            ``None``: it is not known.
    """

    phase: Literal["waiting", "running", "stopped", "done"]
    step: Step | None = None
    reason: str = ""
    files: tuple[tuple[str, str], ...] = ()
    report: bool = False
    sites: tuple[str, ...] | None = None


def run_state(run: Path) -> RunState:
    """State of the run in the RUN folder ``run``, where nothing is changed."""
    if is_working(run):
        return RunState("running", _step(run))
    if (run / "results.json").is_file():
        files = [(name, run / name) for name in DOWNLOADS if (run / name).is_file()]
        sizes = tuple((name, units.si(path.stat().st_size, "B")) for name, path in files)
        return RunState("done", None, "", sizes, (run / REPORT).is_file(), _sites(run))
    if (run / "configuration.json").is_file():
        return RunState("stopped", _step(run), _reason(run))
    return RunState("waiting")


def _sites(run: Path) -> tuple[str, ...] | None:
    try:
        entries = Ledger.read(run).entries
    except OneRoundError:
        return None
    gone = [site for entry in entries for site in entry.withdrawn]
    return (*entries[-1].submissions, *gone) if entries else None


def _step(run: Path) -> Step | None:
    try:
        return validated(Step, read_json(run / PROGRESS), run / PROGRESS)
    except OneRoundError:
        return None


def _reason(run: Path) -> str:
    """Why the run has stopped, if that is the last thing in its log."""
    try:
        text = (run / "log.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    _, stopped, reason = text.rpartition(" ERROR stopped: ")
    return "" if not stopped or " INFO " in reason else reason.partition("\n")[0]
