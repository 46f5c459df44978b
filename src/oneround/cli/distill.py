"""``oneround distill``: submissions in, global model out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oneround import coordination, methods
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
from oneround.report import write_report
from oneround.results import Results
from oneround.study import Study
from oneround.submission import read_submissions


def distill(
    study_file: StudyFile,
    files: Annotated[list[Path], typer.Argument(help="The submissions.", show_default=False)],
    run: Annotated[Path, typer.Option("--out", help="RUN folder.", show_default=False)],
    method: Annotated[str, typer.Option(help=f"One of {', '.join(methods.names())}.")] = "kang2025",
    preset: Annotated[str, typer.Option(help="quick or paper.")] = "quick",
    changes: Set = None,
    seed: Annotated[int, typer.Option(min=0, help="Of synthesis and distillation.")] = 0,
    flops: Flops = None,
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
    """
    study = Study.read(study_file)
    chosen = methods.get(method)
    options = chosen.resolve(preset, changes or [])
    submissions = read_submissions(files, study, identity=identity_of(identity_file))
    fabric = fabric_for(device, threads, devices, nodes)
    with ProgressBars() as progress:
        coordination.distill(
            study,
            submissions,
            out=run,
            method=chosen,
            options=options,
            seed=seed,
            flops=flops,
            resume=resume,
            fabric=fabric,
            progress=progress,
        )
    if fabric.global_rank:
        return
    page = write_report(run)
    results = Results.read(run)
    if as_json:
        print_json(results.model_dump(mode="json", by_alias=True))
        return
    say(f"{run / 'global.safetensors'} from {len(submissions)} submission(s)", "bold")
    say(f"  send it, with {run / 'config.json'}, to the sites; there:")
    say(f"  oneround evaluate {run / 'global.safetensors'} --data PATH")
    say(f"  report: {page}")
