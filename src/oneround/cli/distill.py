"""``oneround distill``: submissions in, global model out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oneround import methods
from oneround.cli.console import (
    AsJson,
    Device,
    Devices,
    Flops,
    IdentityFile,
    Nodes,
    ProgressBars,
    Set,
    StudyFile,
    Threads,
    fabric_for,
    identity_of,
    print_json,
    say,
)
from oneround.coordinator import aggregate
from oneround.coordinator.history import Entry, Ledger
from oneround.coordinator.results import Results
from oneround.coordinator.updates import Predecessor
from oneround.errors import OneRoundError
from oneround.methods import Method
from oneround.report import write_model_card, write_report
from oneround.schema import Strict
from oneround.study import Study
from oneround.submission import read_submissions


def distill(
    study_file: StudyFile,
    files: Annotated[list[Path], typer.Argument(help="The submissions.", show_default=False)],
    run: Annotated[Path, typer.Option("--out", help="RUN folder.", show_default=False)],
    method: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(methods.names())}. "
            f"{methods.DEFAULT}, or that of --extend, by default."
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="quick or paper. quick, or the options of --extend, by default."),
    ] = None,
    changes: Set = None,
    seed: Annotated[int, typer.Option(min=0, help="Of synthesis and distillation.")] = 0,
    flops: Flops = None,
    extend: Annotated[
        Path | None,
        typer.Option(
            help="RUN folder of the global model so far: go on from it, with further submissions "
            "beside all of its own.",
            show_default=False,
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITE",
            help="With --extend: a site that has withdrawn. A full run without it; repeat.",
        ),
    ] = None,
    identity_file: IdentityFile = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.")
    ] = False,
    device: Device = "auto",
    devices: Devices = None,
    nodes: Nodes = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Make one global model from the submissions alone; no image is needed.

    The folder gets `global.safetensors` and `config.json` (send both to the sites, or one of
    the RUN folder's copies), the image bank, `results.json` and `report.html`.

    Example: `oneround distill blood.toml north.oneround south.oneround --out run`

    When one comes late: `oneround distill blood.toml inbox/*.oneround --extend run --out next`
    """
    study = Study.read(study_file)
    chosen, options = _chosen(extend, method, preset, changes or [])
    if without and not extend:
        raise OneRoundError(
            "--without says who has left a global model.",
            remedy="Give the RUN folder of that model with --extend.",
        )
    submissions = read_submissions(files, study, identity=identity_of(identity_file))
    fabric = fabric_for(device, threads, devices, nodes)
    with ProgressBars() as progress:
        aggregate.distill(
            study,
            submissions,
            out=run,
            method=chosen,
            options=options,
            seed=seed,
            flops=flops,
            resume=resume,
            extends=extend,
            without=without or [],
            fabric=fabric,
            progress=progress,
        )
    if fabric.global_rank:
        return
    page, card = write_report(run), write_model_card(run)
    results = Results.read(run)
    if as_json:
        print_json(results.model_dump(mode="json", by_alias=True))
        return
    say(f"{run / 'global.safetensors'} from {len(submissions)} submission(s)", "bold")
    say(f"  send it, with {run / 'config.json'}, to the sites; there:")
    say(f"  oneround evaluate {run / 'global.safetensors'} --data PATH")
    say(f"  report: {page}; for those who get the model: {card}")
    for note in results.notes:
        say(f"  note: {note}")
    _tell(Ledger.read(run).entries)


def _chosen(
    extend: Path | None, method: str | None, preset: str | None, changes: list[str]
) -> tuple[Method, Strict]:
    """Method and options as given, or else those of the run that is extended."""
    before = Predecessor.read(extend) if extend and not method else None
    if before and not preset:
        return before.method, before.options(changes)
    chosen = before.method if before else methods.get(method or methods.DEFAULT)
    return chosen, chosen.resolve(preset or "quick", changes)


def _tell(entries: list[Entry]) -> None:
    """What this global model has to do with those before."""
    now, first = entries[-1], entries[0]
    if now.how == "extension":
        say(f"  added {', '.join(now.added)} for {now.flops / first.flops:.0%} of the FLOPs of the "
            "first model")  # fmt: skip
    if now.how == "withdrawal":
        say(f"  nothing of {', '.join(now.withdrawn)} is in it; to be deleted, with all copies:")
        for entry in entries[:-1]:
            if set(now.withdrawn) & entry.submissions.keys():
                say(f"    the RUN folder {entry.folder} and its model {entry.model[:12]}…")
