"""``oneround submit``: bring the one file to where the coordinator collects it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from oneround.cli.console import AsJson, ProgressBars, print_json, say
from oneround.errors import OneRoundError
from oneround.submission import check_submission, encrypted_path
from oneround.transfer import Carrier


def submit(
    file: Annotated[Path, typer.Argument(help="The submission.", show_default=False)],
    url: Annotated[
        str, typer.Argument(help="A folder: a path, sftp://, s3://, webdavs:// or https://.")
    ],
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace an older file of this name.")
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Send this file although an encrypted one is beside it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send a submission to a shared folder, an SFTP, S3 or WebDAV store, or by HTTPS PUT.

    It gets its name there when it is whole, and is read back and compared. The same command can
    be run again at any time. Passwords and tokens come from `ONEROUND_PASSWORD` and
    `ONEROUND_TOKEN`.

    Example: `oneround submit north.oneround.age sftp://north@drop.example.org/blood`
    """
    sealed = encrypted_path(file)
    if not plain and sealed.exists():
        older = file.exists() and sealed.stat().st_mtime < file.stat().st_mtime
        raise OneRoundError(
            "this is the file that stays; the encrypted one is beside it"
            + (", and is older." if older else "."),
            file=file,
            remedy=("Seal it again, and submit" if older else "Submit")
            + f" {sealed}; or give --plain.",
        )
    broken = [p for p in check_submission(file) if p.fatal and p.code != "encrypted"]
    if broken:
        raise OneRoundError(
            "this is no submission: " + "; ".join(problem.what for problem in broken) + ".",
            file=file,
            remedy="Choose the file that `oneround train` or `oneround seal` wrote.",
        )
    with ProgressBars() as progress:
        receipt = Carrier(url, progress).send(file, replace=replace)
    if as_json:
        print_json(asdict(receipt))
        return
    say(f"{receipt.name} ({receipt.size:,} bytes) is {'sent' if receipt.sent else 'there already'}",
        "bold")  # fmt: skip
    say(f"  sha256         {receipt.sha256}")
    compared = "read back, it is the same" if receipt.compared else "the server shows no file: no"
    say(f"  compared       {compared}")
