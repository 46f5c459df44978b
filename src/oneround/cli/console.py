"""What all commands share: options, output, progress, devices."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from oneround import signing
from oneround.coordinator.results import Models
from oneround.evaluation import Metrics
from oneround.report import units
from oneround.runs.callbacks import Callback
from oneround.runs.device import Device

out = Console()
err = Console(stderr=True)

StudyFile = Annotated[Path, typer.Argument(help="The study, a TOML file.", show_default=False)]
SignedBy = Annotated[
    Path | None,
    typer.Option(
        help="The coordinator's .pub file: refuse a study that it did not sign.",
        show_default=False,
    ),
]
IdentityFile = Annotated[
    Path | None,
    typer.Option(
        "--identity", help="The .identity file that opens encrypted files.", show_default=False
    ),
]
DataPath = Annotated[
    str,
    typer.Option(
        "--data",
        help="MedMNIST .npz, folder with one folder per class, CSV with path and label, "
        "or with --download the name of a MedMNIST data set.",
        show_default=False,
    ),
]
Download = Annotated[bool, typer.Option(help="Download the data set that --data names.")]
MaxSkipped = Annotated[
    float, typer.Option(min=0, max=1, help="Stop when a larger share of images is unreadable.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DeviceName = Annotated[Device, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; all by default.")]
Flops = Annotated[
    float | None,
    typer.Option(min=1, help="FLOPs that the method may spend, such as 5e12.", show_default=False),
]
Devices = Annotated[
    int | None,
    typer.Option(min=1, help="Processes on this machine, each with a GPU or on the CPU; 1."),
]
Nodes = Annotated[
    int | None, typer.Option("--num-nodes", min=1, help="Machines that work together; 1.")
]
Architectures = Annotated[
    list[str] | None,
    typer.Option(
        "--architecture",
        help="NAME or NAME:KEY=VALUE,… such as resnet18:width=16; repeat for several.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one option; repeat for several."),
]


def passphrase_of(file: Path) -> str | None:
    """The passphrase of a private key file, if it has one: from the environment, or asked for."""
    if not signing.needs_passphrase(file):
        return None
    given = os.environ.get("ONEROUND_PASSPHRASE")
    return given or str(typer.prompt(f"Passphrase of {file}", hide_input=True, err=True))


def identity_of(file: Path | None) -> signing.Identity | None:
    """The identity in a file, its passphrase asked for if it has one."""
    return signing.Identity(file, passphrase_of(file)) if file else None


def say(text: str, style: str | None = None, console: Console = out) -> None:
    """A line as it is: what looks like markup in a path is text, and nothing is wrapped."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def print_json(content: object) -> None:
    """Nothing but JSON on standard output."""
    typer.echo(json.dumps(content, indent=1))


def warn_skipped(skipped: Iterable[str]) -> None:
    """Say on standard error which images were skipped."""
    lines = list(skipped)
    if lines:
        say(f"{len(lines)} image(s) could not be read and were skipped:", "yellow", err)
        for line in lines[:20]:
            say(f"  {line}", console=err)
        if len(lines) > 20:
            say(f"  … and {len(lines) - 20} more", console=err)


def plain_table(first: str, columns: Iterable[str], title: str = "") -> Table:
    """A table of names and numbers without frame, for 80 columns; only names are folded."""
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
    """Every model with its 95 % intervals, and the bytes that had to be sent for it."""
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
    """Training images of each class at each site; the longer names go down the side."""
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
        """Show a step of a run."""
        if err.is_terminal:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total, note=note)
            self._bars.update(self._tasks[stage], completed=done, total=total, note=note)
        elif done == total or time.monotonic() - self._last > 10:
            self._last = time.monotonic()
            say(f"{stage} {done}/{total} {note}", console=err)
