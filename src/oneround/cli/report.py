"""``oneround report``: write the page of a run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oneround.cli.console import AsJson, print_json, say
from oneround.coordinator.evaluations import keep_evaluations, read_evaluation
from oneround.coordinator.history import FILE as LEDGER
from oneround.report import write_model_card, write_report
from oneround.study import Study


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="RUN folder.", show_default=False)],
    metrics: Annotated[
        list[Path] | None,
        typer.Option(
            "--metrics",
            help="File of metrics that a site sent back; repeat for several.",
            show_default=False,
        ),
    ] = None,
    study_file: Annotated[
        Path | None,
        typer.Option(
            "--study", help="Study whose keys the files are checked with.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write `RUN/report.html`, one file without external links, and `RUN/model-card.md`.

    Metrics that sites have sent back are stored in the folder, and shown from then on.

    Example: `oneround report run --metrics north.json --metrics south.json --study blood.toml`
    """
    study = Study.read(study_file) if study_file else None
    if metrics:
        keep_evaluations(run, [read_evaluation(path, study) for path in metrics])
    page = write_report(run)
    if (run / LEDGER).exists():
        write_model_card(run)
    if as_json:
        print_json({"report": str(page), "bytes": page.stat().st_size})
    else:
        say(f"report: {page}")
