"""``oneround aggregate``: submissions in, global model out, whatever the method."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any

import typer

from oneround import methods
from oneround.cli.console import (
    AsJson,
    DeviceName,
    Devices,
    Flops,
    IdentityFile,
    Nodes,
    ProgressBars,
    Set,
    StudyFile,
    Threads,
    identity_of,
    print_json,
    say,
)
from oneround.coordinator.aggregate import aggregate as make_global_model
from oneround.coordinator.history import Entry, Ledger
from oneround.coordinator.results import Results
from oneround.errors import warn_renamed
from oneround.report import write_model_card, write_report
from oneround.runs.device import fabric_for
from oneround.study import Study
from oneround.submission import read_submissions


def aggregate(
    study_file: StudyFile,
    files: Annotated[list[Path], typer.Argument(help="Submissions.", show_default=False)],
    run: Annotated[Path, typer.Option("--out", help="RUN folder.", show_default=False)],
    method: Annotated[
        str | None,
        typer.Option(
            help=f"Method, one of {', '.join(methods.names())}. "
            f"{methods.DEFAULT}, or that of --extend, by default."
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Preset, quick or paper. quick, or the options of --extend, by default."),
    ] = None,
    changes: Set = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of synthesis and distillation.")] = 0,
    flops: Flops = None,
    extend: Annotated[
        Path | None,
        typer.Option(
            help="RUN folder of the global model so far: continue it, with further submissions "
            "beside all of its own.",
            show_default=False,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude",
            "--without",
            metavar="SITE",
            help="Site to leave out, whatever its file is; with --extend, a site that has "
            "withdrawn, for a full run without it; repeat.",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="SITE",
            help="Site whose client model the student starts from. By default the method chooses.",
            show_default=False,
        ),
    ] = None,
    trust: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITE", help="Site to use even if the cross-check suspects it; repeat."
        ),
    ] = None,
    identity_file: IdentityFile = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    device: DeviceName = "auto",
    devices: Devices = None,
    nodes: Nodes = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Make one global model from the submissions alone; no image is needed.

    The RUN folder gets the global model (`global.safetensors` and `config.json`; send both to the
    sites), the image bank, `results.json`, `report.html` and `model-card.md`.

    Example: `oneround aggregate blood.toml north.oneround south.oneround --out run`

    When a site joins late: `oneround aggregate blood.toml inbox/*.oneround --extend run --out next`
    """
    study = Study.read(study_file)
    for site in exclude or ():
        study.require_site(site)
    submissions = read_submissions(
        files, study, identity=identity_of(identity_file), exclude=exclude or ()
    )
    fabric = fabric_for(device, threads, devices, nodes)
    with ProgressBars() as bars:
        make_global_model(
            study,
            submissions,
            out=run,
            method=method,
            preset=preset,
            options=changes or [],
            seed=seed,
            flops=flops,
            resume=resume,
            extends=extend,
            without=exclude or [],
            start=start,
            trust=trust or [],
            fabric=fabric,
            callbacks=[bars],
        )
    if fabric.global_rank:
        return
    page, card = write_report(run), write_model_card(run)
    results = Results.read(run)
    if as_json:
        print_json(results.model_dump(mode="json", by_alias=True))
        return
    say(f"{run / 'global.safetensors'} from {len(submissions)} submission(s)", "bold")
    say(f"  send it, with {run / 'config.json'}, to the sites; at a site:")
    say(f"  oneround evaluate {run / 'global.safetensors'} --data PATH")
    say(f"  report: {page}; for those who get the model: {card}")
    suspected = {f"{suspect.site}: {suspect.why}" for suspect in results.suspects}
    for note in results.notes:
        say(f"  {'warning' if note in suspected else 'note'}: {note}")
    _show_history(Ledger.read(run).entries)


@functools.wraps(aggregate)
def distill(*arguments: Any, **options: Any) -> None:
    """``oneround aggregate``, by the name that it had in the version before."""
    warn_renamed("the command distill", "aggregate")
    aggregate(*arguments, **options)


def _show_history(entries: list[Entry]) -> None:
    """Print what this global model has to do with those before."""
    last, first = entries[-1], entries[0]
    if last.how == "extension":
        share = f"{last.flops / first.flops:.0%} of the FLOPs of the first model"
        say(f"  added {', '.join(last.added)} for {share}")
    if last.how == "withdrawal":
        say(f"  nothing of {', '.join(last.withdrawn)} is in it; to be deleted, with all copies:")
        for entry in entries[:-1]:
            if set(last.withdrawn) & entry.submissions.keys():
                say(f"    the RUN folder {entry.folder} and its model {entry.model[:12]}…")
