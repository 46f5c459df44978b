"""``oneround collect``: fetch what the sites have submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oneround.cli.console import AsJson, ProgressBars, print_json, say
from oneround.errors import OneRoundError
from oneround.files import remove_abandoned
from oneround.transfer import Carrier


def collect(
    url: Annotated[str, typer.Argument(help="A folder: a path, sftp://, s3:// or webdavs://.")],
    folder: Annotated[Path, typer.Option("--out", help="Where to put the files.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Take changed files in place of those that are here.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch all submissions that are new; nothing is removed there, and several may run at once.

    A file that may have been accepted stays when the carrier's has changed, until you give
    `--replace`. What cannot be fetched is named, all others are fetched, and the exit code is 1.
    Files are fetched as they are, for you alone to read, and not trusted: `oneround status` says
    what is wrong with them.

    Example: `oneround collect sftp://coordinator@drop.example.org/blood --out inbox`
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    fetched, known = list[str](), list[str]()
    failed: dict[str, str] = {}
    with ProgressBars() as progress:
        carrier = Carrier(url, progress)
        for item in carrier.items():
            if _is_here(folder / item.name, item.size, item.modified):
                known.append(item.name)
                continue
            try:
                new = carrier.collect(item, folder, replace=replace)
            except OneRoundError as error:
                failed[item.name] = str(error)
            else:
                (fetched if new else known).append(item.name)
    if as_json:
        print_json({"fetched": fetched, "known": known, "failed": failed, "folder": str(folder)})
    else:
        say(f"{len(fetched)} fetched, {len(known)} here already: {folder}", "bold")
        for name in fetched:
            say(f"  {name}")
        for reason in failed.values():
            say(f"  not fetched: {reason}", "red")
        say(f"  next: oneround status STUDY {folder}")
    if failed:
        raise typer.Exit(1)


def _is_here(file: Path, size: int, modified: object) -> bool:
    from datetime import UTC, datetime

    try:
        found = file.stat()
    except FileNotFoundError:
        return False
    if found.st_size != size or not isinstance(modified, datetime):
        return False
    here = datetime.fromtimestamp(found.st_mtime, UTC)
    return abs((here - modified).total_seconds()) < 1
