"""``oneround bench``: a grid of methods, data sets, partitions and seeds."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from oneround.cli.console import ProgressBars, err, say
from oneround.research.benchmark.grid import Bench
from oneround.research.benchmark.page import write_page
from oneround.research.benchmark.runner import run_bench


def bench(
    file: Annotated[Path, typer.Argument(help="Benchmark, a TOML file.", show_default=False)],
    folder: Annotated[
        Path, typer.Option("--out", help="Folder of the results.", show_default=False)
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the data sets; that of the TOML file by default."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes on this machine.")] = 1,
    scheduler: Annotated[
        str | None,
        typer.Option(help="Address of a Dask scheduler, for workers on many machines."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Cell to run, and no other; repeat for several.")
    ] = None,
    page_only: Annotated[
        bool, typer.Option("--page", help="Write the page from the table, and run nothing.")
    ] = False,
) -> None:
    """Compare methods on the same client models, with the same measurement of cost.

    Cells that are in `cells.csv` of the folder are not run again, so the same command continues
    an interrupted benchmark, also on another machine with a copy of the table. Writes
    `cells.csv`, `curves.csv`, `report.md` and `report.html`.

    Example: `oneround bench benchmarks/cpu.toml --data data --out benchmarks/cpu --workers 2`
    """
    content = Bench.read(file)
    finished, failed = 1, dict[str, str]()
    if not page_only:
        command = ["oneround", "bench", str(file), *(["--data", str(data)] if data else [])]
        command += ["--out", str(folder)]
        with ProgressBars() as bars:
            outcome = run_bench(
                content,
                data=data or file.parent,
                out=folder,
                command=shlex.join(command),
                only=only or (),
                workers=workers,
                scheduler=scheduler,
                callbacks=[bars],
                tell=lambda line: say(line, console=err),
            )
        finished, failed = outcome.finished, outcome.failed
    if finished:
        say(f"page: {write_page(folder, content.title)}")
    if failed:
        say(f"{len(failed)} cell(s) failed; the same command tries them again:", "red", err)
        for cell, reason in failed.items():
            say(f"  {cell}: {reason}", console=err)
        raise typer.Exit(1)
