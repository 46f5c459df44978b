"""What all commands share: options, output, progress, devices."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from oneround import signing
from oneround.report import units
from oneround.runs.callbacks import Callback
from oneround.runs.device import Device

if TYPE_CHECKING:
    from oneround.coordinator.results import Models
    from oneround.data import Splits
    from oneround.evaluation import Metrics
    from oneround.study import Task

out = Console()
err = Console(stderr=True)
MOST_SKIPPED = 20  # lines about unreadable images on a terminal

StudyFile = Annotated[Path, typer.Argument(help="Study, a TOML file.", show_default=False)]
SignedBy = Annotated[
    Path | None,
    typer.Option(
        help="The coordinator's .pub file; a study that it did not sign is refused.",
        show_default=False,
    ),
]
IdentityFile = Annotated[
    Path | None,
    typer.Option(
        "--identity",
        help="The .identity file that encrypted submissions are opened with.",
        show_default=False,
    ),
]
DataPath = Annotated[
    str,
    typer.Option(
        "--data",
        help="Images: a MedMNIST .npz, a folder with one folder per class, a CSV with path and "
        "label, or with --download the name of a MedMNIST data set.",
        show_default=False,
    ),
]
Download = Annotated[bool, typer.Option(help="Download the data set that --data names.")]
MaxSkipped = Annotated[
    float, typer.Option(min=0, max=1, help="Largest share of unreadable images that are skipped.")
]
CacheFolder = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Folder to keep the converted images in, so that they need not fit into memory and "
        "are not read again; it stays here.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DeviceName = Annotated[Device, typer.Option("--device", help="Device: auto, cpu, cuda or mps.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Number of CPU threads; all by default.")]
Flops = Annotated[
    float | None,
    typer.Option(min=1, help="FLOPs that the method may spend, such as 5e12.", show_default=False),
]
Devices = Annotated[
    int | None,
    typer.Option(min=1, help="Processes on this machine, each on a GPU or the CPU; 1 by default."),
]
Nodes = Annotated[
    int | None,
    typer.Option("--num-nodes", min=1, help="Machines that work together; 1 by default."),
]
Architectures = Annotated[
    list[str] | None,
    typer.Option(
        "--architecture",
        help="Network, NAME or NAME:KEY=VALUE,… such as resnet18:width=16; repeat for several.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One option to override; repeat for several."),
]


def passphrase_of(file: Path) -> str | None:
    """The passphrase of a private key file, if it has one: from the environment, or asked for."""
    if not signing.needs_passphrase(file):
        return None
    given = os.environ.get("ONEROUND_PASSPHRASE")
    return given or str(typer.prompt(f"Passphrase of {file}", hide_input=True, err=True))


def identity_of(file: Path | None) -> signing.Identity | None:
    """The identity in a file; its passphrase is asked for if it has one."""
    return signing.Identity(file, passphrase_of(file)) if file else None


def say(text: str, style: str | None = None, console: Console = out) -> None:
    """Print a line as it is: nothing in it is taken as markup, and it is not wrapped."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def print_json(content: object) -> None:
    """Print JSON, and nothing else, on standard output."""
    typer.echo(json.dumps(content, indent=1, allow_nan=False))


def read_with_progress(data: str, task: Task, **arguments: Any) -> Splits:
    """The images of a data set, with progress, and a word on those that were skipped.

    Args:
        data: What ``--data`` names.
        task: Image and classes to read them as.
        arguments: More of :func:`oneround.data.read_splits`.
    """
    from oneround.data import read_splits  # needs torch

    with ProgressBars() as bars:
        splits = read_splits(
            data, image=task.image, classes=task.classes, on_progress=bars.on_progress, **arguments
        )
    warn_skipped(splits)
    return splits


def warn_skipped(splits: Splits) -> None:
    """Print on standard error which images were skipped, and what looks wrong in the others."""
    unreadable = splits.skipped[: splits.unreadable]
    if unreadable:
        say(f"{len(unreadable)} image(s) could not be read and were skipped:", "yellow", err)
        for line in unreadable[:MOST_SKIPPED]:
            say(f"  {line}", console=err)
        if more := unreadable[MOST_SKIPPED:]:
            say(f"  … and {len(more)} more; --json lists all", console=err)
    for line in splits.skipped[splits.unreadable :]:
        say(f"look: {line}", "yellow", err)


def plain_table(first: str, columns: Iterable[str], title: str = "") -> Table:
    """A table of names and numbers without frame, for 80 columns; only names are wrapped."""
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(escape(column), justify="right", no_wrap=True)
    return table


def models_table(models: Models, bytes_sent: Mapping[str, int]) -> Table:
    """Metrics of every model with 95 % intervals, and the bytes that were sent for it."""
    keys = ("accuracy", "balanced_accuracy", "auroc")
    title = "Test images: value and 95 % interval"
    table = plain_table("model", ("accuracy", "balanced accuracy", "AUROC", "sent"), title)

    def cell(metrics: Metrics | None, key: str) -> str:
        if metrics is None or getattr(metrics, key) is None:
            return units.decimal(None)
        interval = units.interval(metrics.intervals[key], units.decimal)
        return f"{units.decimal(getattr(metrics, key))} {interval}"

    def add(name: str, metrics: Metrics | None, sent: int, style: str | None = None) -> None:
        cells = (cell(metrics, key) for key in keys)
        table.add_row(name, *cells, units.si(sent, "B").replace(units.SPACE, " "), style=style)

    for site in models.sites:
        add(site.site, site, bytes_sent[site.site])
    table.add_row()
    total = sum(bytes_sent.values())
    add("1-shot FedAvg", models.fedavg, total)
    add("ensemble", models.ensemble, total)
    add("global model", models.global_model, total, "bold")
    return table


def counts_table(classes: Sequence[str], counts: Mapping[str, Sequence[int]]) -> Table:
    """Training images of each class at each site; the longer names are in the first column."""
    columns = [*zip(*counts.values(), strict=True), tuple(map(sum, counts.values()))]
    if len("".join(classes)) <= len("".join(counts)):
        table = plain_table("site", (*classes, "total"), "Training images")
        for site, *numbers in zip(counts, *columns, strict=True):
            table.add_row(site, *map(str, numbers))
        return table
    table = plain_table("class", counts, "Training images")
    for name, row in zip((*classes, "total"), columns, strict=True):
        table.add_row(escape(name), *map(str, row))
    return table


class ProgressBars(Callback, AbstractContextManager["ProgressBars"]):
    """Bars on a terminal; elsewhere, such as in a log file, a line every ten seconds."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=err,
        )
        self._tasks: dict[str, Any] = {}
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        if err.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if err.is_terminal:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        """The progress of a transfer; an :data:`oneround.runs.callbacks.Progress`."""
        self.on_progress(stage, done, total, note)

    def on_progress(self, stage: str, done: int, total: int, note: str) -> None:
        """Show the progress of a stage."""
        if err.is_terminal:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total, note=note)
            self._bars.update(self._tasks[stage], completed=done, total=total, note=note)
        elif done == total or (done == 0 and note) or time.monotonic() - self._last > 10:
            self._last = time.monotonic()
            say(f"{stage} {done}/{total} {note}", console=err)
