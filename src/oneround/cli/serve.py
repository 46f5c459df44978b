"""``oneround serve``: a page for the coordinator and the sites."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oneround.cli.console import (
    AsJson,
    IdentityFile,
    StudyFile,
    err,
    identity_of,
    print_json,
    say,
)
from oneround.coordinator.inbox import Inbox
from oneround.errors import OneRoundError
from oneround.study import Study
from oneround.submission import LIMIT_BYTES
from oneround.web.intake import Intake


def serve(
    study_file: StudyFile,
    run: Annotated[Path, typer.Argument(help="RUN folder to watch; it need not be there yet.")],
    inbox: Annotated[Path, typer.Option(help="The folder of submissions.", show_default=False)],
    identity_file: IdentityFile = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 8765,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--name",
            help="Name in the URL by which browsers call this server, also through a proxy; "
            "repeat for several.",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate, a PEM file.", show_default=False)
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(help="Its key, a PEM file; in the same file by default."),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=LIMIT_BYTES, help="Largest size of a submission in bytes.")
    ] = LIMIT_BYTES,
    share_report: Annotated[
        bool,
        typer.Option(
            "--share-report", help="Let sites read the report too: it shows the image bank."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Serve a page: who has submitted, submit a file, watch the run, get report and global model.

    Sites log in with `oneround tokens new`; the coordinator with the link that is printed.

    Example: `oneround serve blood.toml run --inbox inbox`
    """
    try:
        from oneround.web import app, server
    except ModuleNotFoundError as error:
        raise OneRoundError(
            f"the page needs the package {error.name!r}.", remedy="pip install 'oneround[serve]'."
        ) from error
    files = Inbox(inbox, Study.read(study_file), identity_of(identity_file), limit)
    place = app.Place(Intake(files), run, study_file, share_report=share_report)

    def ready(url: str, link: str) -> None:
        if as_json:
            print_json({"url": url, "link": link})
            return
        say(url, "bold")
        say(f"  coordinator, once: {link}")
        if not (tls_cert or server.is_loopback(host)):
            say("  Without TLS everybody on the way can read tokens and files: give --tls-cert, "
                "or put a server with TLS in front.", "yellow", err)  # fmt: skip

    server.serve(
        place, host=host, port=port, names=names or [], certificate=tls_cert, key=tls_key,
        ready=ready,
    )  # fmt: skip
