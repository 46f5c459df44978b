"""``oneround inspect``: what a submission says, and everything that is wrong with it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from oneround.cli.console import AsJson, IdentityFile, identity_of, print_json, say
from oneround.study import Study
from oneround.submission import check_submission, read_submission


def inspect(
    file: Annotated[Path, typer.Argument(help="A submission.", show_default=False)],
    study_file: Annotated[
        Path | None, typer.Option("--study", help="Compare with this study too.")
    ] = None,
    identity_file: IdentityFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the manifest of a submission and every problem found; exit code 1 if it is refused.

    Example: `oneround inspect north.oneround --study blood.toml`
    """
    study = Study.read(study_file) if study_file else None
    identity = identity_of(identity_file)
    problems = check_submission(file, study, identity=identity)
    refused = any(problem.fatal for problem in problems)
    submission = None if refused else read_submission(file, study, identity=identity)
    if as_json:
        print_json(
            {
                "file": str(file),
                "accepted": not refused,
                "sha256": submission.sha256 if submission else None,
                "signed_by": submission.signed_by if submission else None,
                "problems": [asdict(problem) for problem in problems],
                "manifest": submission.manifest.model_dump(mode="json") if submission else None,
            }
        )
    else:
        if refused:
            say(f"{file}: refused", "bold red")
        else:
            say(f"{file}: accepted", "bold green")
        if submission:
            say(f"  sha256         {submission.sha256}")
            say(f"  signed by      {submission.signed_by or 'nobody that the study knows'}")
            for key, value in submission.manifest.model_dump(mode="json").items():
                say(f"  {key:<14} {value}")
        for problem in problems:
            kind = "problem" if problem.fatal else "warning"
            say(f"  {kind}: {problem}")
    if refused:
        raise typer.Exit(1)
