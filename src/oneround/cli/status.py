"""``oneround status``: who has submitted, and is it enough."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from oneround.cli.console import (
    AsJson,
    IdentityFile,
    ProgressBars,
    StudyFile,
    err,
    identity_of,
    out,
    plain_table,
    say,
)
from oneround.coordinator.inbox import Status, expected_sites, status_of, submissions_in
from oneround.errors import OneRoundError
from oneround.report import units
from oneround.study import Study
from oneround.transfer import Carrier


def status(
    study_file: StudyFile,
    url: Annotated[
        str, typer.Argument(help="Where the files are: a folder, sftp://, s3:// or webdavs://.")
    ],
    identity_file: IdentityFile = None,
    as_json: AsJson = False,
) -> None:
    """Check everything that was submitted: who, when, what is wrong, who is missing.

    The exit code is 0 when the global model can be made: k of n files are accepted and go together.

    Example: `oneround status blood.toml inbox --identity coordinator.identity`
    """
    study, identity = Study.read(study_file), identity_of(identity_file)
    if "://" in url:
        with tempfile.TemporaryDirectory(prefix="oneround-") as folder, ProgressBars() as progress:
            carrier, paths = Carrier(url, progress), []
            for item in carrier.items():
                try:
                    paths.append(carrier.fetch(item, Path(folder)))
                except OneRoundError as error:
                    say(f"not fetched: {error}", "red", err)
            found = status_of(study, paths, identity=identity)
    else:
        found = status_of(study, submissions_in(url), identity=identity)
    if as_json:
        typer.echo(found.model_dump_json(indent=1))
    else:
        _show(found, study)
    if not found.enough:
        raise typer.Exit(1)


def _show(found: Status, study: Study) -> None:
    table = plain_table("site", ("received (UTC)", "size", "check", "file"))
    for site, file in found.rows:
        if file is None:
            table.add_row(escape(site or "?"), "", "", "missing", "", style="yellow")
            continue
        time = f"{file.received:%Y-%m-%d %H:%M}" + (", late" if file.late else "")
        size = units.si(file.bytes, "B").replace(units.SPACE, " ")
        check = "accepted" if file.accepted else "refused"
        name = escape(site or "?")
        style = None if file.accepted else "red"
        table.add_row(name, time, size, check, escape(file.file), style=style)
    out.print(table)
    for file in found.files:
        for problem in file.problems:
            say(f"{file.file}: {'problem' if problem.fatal else 'warning'}: {problem}")
    for problem in found.together:
        say(f"together: {problem}", "red")
    deadline = f"{found.deadline:%Y-%m-%d %H:%M} UTC" if found.deadline else "none"
    passed = found.deadline is not None and found.now > found.deadline
    say(f"  deadline       {deadline}{', has passed' if passed else ''}")
    expected = len(expected_sites(study)) or "any number of"
    enough = "enough" if found.enough else "not enough yet"
    say(f"  accepted       {found.accepted} of {expected} sites, {found.at_least} needed: {enough}",
        "bold")  # fmt: skip
