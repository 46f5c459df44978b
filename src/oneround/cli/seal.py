"""``oneround seal``: sign and encrypt a submission before it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oneround import signing
from oneround.cli.console import AsJson, SignedBy, StudyFile, passphrase_of, print_json, say
from oneround.study import Study
from oneround.submission import seal_submission


def seal(
    study_file: StudyFile,
    file: Annotated[Path, typer.Argument(help="The site's submission.", show_default=False)],
    key: Annotated[
        Path | None, typer.Option(help="The site's .key file, to sign with.", show_default=False)
    ] = None,
    signed_by: SignedBy = None,
    as_json: AsJson = False,
) -> None:
    """Sign a submission, and encrypt it if the study has a key for that.

    The signature is put into the file. If it is encrypted, the file to submit has `.age` after its
    name, and only the coordinator can open it.

    Example: `oneround seal blood.toml north.oneround --key north.key`
    """
    study = Study.read(study_file, signed_by=signed_by)
    passphrase = passphrase_of(key) if key else None
    leaves = seal_submission(file, study, key=key, passphrase=passphrase)
    signer = signing.fingerprint(signing.public_key_of(key, passphrase)) if key else None
    encrypted_to = study.submission.encrypt_to
    if as_json:
        print_json({"file": str(leaves), "signed_by": signer, "encrypted_to": encrypted_to})
        return
    say(f"{leaves} ({leaves.stat().st_size:,} bytes) is ready to submit", "bold")
    say(f"  signed by      {signer or 'nobody'}")
    say(f"  encrypted to   {encrypted_to or 'nobody: whoever gets it can read it'}")
    if leaves != file:
        say(f"  {file} stays here")
