"""``oneround report``: write the page of a run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oneround.cli.console import AsJson, print_json, say
from oneround.report import write_report


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="RUN folder.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Write `RUN/report.html`: one file without external links, to read or to send.

    Example: `oneround report run`
    """
    page = write_report(run)
    if as_json:
        print_json({"report": str(page), "bytes": page.stat().st_size})
    else:
        say(f"report: {page}")
