"""``oneround keys``: make a key pair, and show the fingerprint of a key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from oneround import signing
from oneround.cli.console import AsJson, print_json, say

app = typer.Typer(no_args_is_help=True, help="Key pairs for signatures and encryption.")


@app.command()
def new(
    stem: Annotated[
        Path, typer.Argument(metavar="NAME", help="Path of the new files, without ending.")
    ],
    encryption: Annotated[
        bool,
        typer.Option(
            "--encryption", help="A key pair for encryption instead of one for signatures."
        ),
    ] = False,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Passphrase for the private file, asked for.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a key pair: a private file that stays here, and a public one for the coordinator.

    For signatures: NAME.key and NAME.pub. With `--encryption`: NAME.identity and NAME.recipient;
    the coordinator puts the recipient into the study. An existing key is never replaced.

    Example: `oneround keys new north`
    """
    secret = _new_passphrase() if passphrase else None
    make = signing.new_encryption_key if encryption else signing.new_signing_key
    files = make(stem, secret)
    public = signing.read_recipient(files.public) if encryption else _fingerprint(files.public)
    if as_json:
        print_json({"private": str(files.private), "public": str(files.public), "is": public})
        return
    if encryption:
        say(f"{files.private} stays here: whoever has it can read what is sent to you", "bold")
        say(f"{files.public} goes into the study: oneround study keys STUDY --encrypt-to FILE")
        say(f"  recipient      {public}")
    else:
        say(f"{files.private} stays here: whoever has it can sign in your name", "bold")
        say(f"{files.public} is for the coordinator; it is not secret")
        say(f"  fingerprint    {public}")


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="Public key, a .pub file.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show the fingerprint of a public key, to be compared over the telephone.

    Example: `oneround keys show north.pub`
    """
    public = signing.read_public_key(file)
    if as_json:
        print_json({"fingerprint": signing.fingerprint(public), "key": public})
    else:
        say(f"{file}: {signing.fingerprint(public)}")


def _fingerprint(public: Path) -> str:
    return signing.fingerprint(signing.read_public_key(public))


def _new_passphrase() -> str:
    given = os.environ.get("ONEROUND_PASSPHRASE")
    return given or str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True))
