"""``oneround simulate``: a whole study in one process, on one data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from oneround import methods
from oneround.cli.console import (
    Architectures,
    AsJson,
    CacheFolder,
    DataPath,
    DeviceName,
    Download,
    Flops,
    MaxSkipped,
    ProgressBars,
    Set,
    Threads,
    counts_table,
    err,
    models_table,
    out,
    print_json,
    say,
    warn_skipped,
)
from oneround.coordinator.results import Results
from oneround.data import Splits
from oneround.report import write_model_card, write_report
from oneround.research import simulation
from oneround.research.simulation import Partition, prepare
from oneround.runs.device import fabric_for
from oneround.schema import Strict
from oneround.study import ArchitectureSpec, Study


def simulate(
    data: DataPath,
    run: Annotated[Path, typer.Option("--out", help="RUN folder.", show_default=False)],
    sites: Annotated[int, typer.Option(min=1, help="Number of sites.")] = 5,
    partition: Annotated[
        Partition,
        typer.Option(
            help="Partition among sites: iid, dirichlet over labels, or by the site column."
        ),
    ] = "iid",
    beta: Annotated[
        float, typer.Option(help="β of the Dirichlet partition; small: unequal sites.")
    ] = 0.6,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything.")] = 0,
    size: Annotated[int | None, typer.Option(help="Height and width of the images.")] = None,
    architecture: Architectures = None,
    local_epochs: Annotated[
        int | None, typer.Option(min=1, help="Training epochs at each site.")
    ] = None,
    method: Annotated[
        str, typer.Option(help=f"Method, one of {', '.join(methods.names())}.")
    ] = methods.DEFAULT,
    preset_name: Annotated[str, typer.Option("--preset", help="Preset, quick or paper.")] = "quick",
    changes: Set = None,
    flops: Flops = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    max_skipped: MaxSkipped = 0.05,
    download: Download = False,
    cache: CacheFolder = None,
    device: DeviceName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Train sites, aggregate and evaluate in one go; test images decide nothing.

    `--set` overrides options of the method (`--set inversion.steps=300`) and, with the prefix
    `training.`, of client training (`--set training.class_weighted=true`).

    Example: `oneround simulate --data bloodmnist.npz --sites 5 --partition dirichlet --seed 1
    --out run`
    """
    of_training = [c for c in changes or [] if c.startswith("training.")]
    with ProgressBars() as bars:
        splits, study = prepare(
            data,
            size=size,
            architectures=[ArchitectureSpec.parse(text) for text in architecture or []],
            preset_name=preset_name,
            training=[*of_training, *([f"training.epochs={local_epochs}"] if local_epochs else [])],
            seed=seed,
            max_skipped=max_skipped,
            download=download,
            cache=cache,
            on_progress=bars.on_progress,
        )
    warn_skipped(splits)
    chosen = methods.get(method)
    options = chosen.resolve(preset_name, [c for c in changes or [] if c not in of_training])
    run_and_show(
        splits, study, chosen, options, run, as_json,
        sites=sites, partition=partition, beta=beta, flops=flops, resume=resume,
        fabric=fabric_for(device, threads),
    )  # fmt: skip


def run_and_show(
    splits: Splits,
    study: Study,
    method: methods.Method,
    options: Strict,
    run: Path,
    as_json: bool,
    **arguments: Any,
) -> Results:
    """Simulate with progress, write the report, print the tables."""
    parts = simulation.divide(
        splits, study, arguments["sites"], arguments["partition"], arguments["beta"]
    )
    counts = {site: train.class_counts().tolist() for site, (train, _) in parts.items()}
    (err if as_json else out).print(counts_table(study.classes, counts))
    with ProgressBars() as bars:
        results = simulation.simulate(
            splits, study, method=method, options=options, out=run, callbacks=[bars], **arguments
        )
    page = write_report(run)
    write_model_card(run)
    if as_json:
        print_json(results.model_dump(mode="json", by_alias=True))
        return results
    out.print(models_table(results.models, {s.site: s.bytes for s in results.submissions}))
    for note in results.notes:
        say(f"note: {note}")
    say(f"report: {page}")
    return results
