"""A submission as it leaves the site: signed, and encrypted if the study asks for that."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

from oneround import signing
from oneround.errors import OneRoundError
from oneround.files import exclusive, write_atomic
from oneround.study import Study, SubmissionSpec
from oneround.submission.container import MANIFEST, SIGNATURE, WEIGHTS, pack
from oneround.submission.read import examine, raise_if_fatal, read_submission


def seal_submission(
    path: str | os.PathLike[str],
    study: Study,
    *,
    key: str | os.PathLike[str] | None = None,
    passphrase: str | None = None,
) -> Path:
    """Sign the submission at ``path``, encrypt it, and return the path of the file to submit.

    The signature is put into the file itself, in place of an older one. If the study has
    ``submission.encrypt_to``, the file to submit is ``NAME.oneround.age``, which the site cannot
    open again; the file at ``path`` stays at the site.

    Args:
        path: the site's submission.
        study: agreement; its ``submission`` says whether to sign and encrypt.
        key: the site's ``.key`` file; ``None``: not signed.
        passphrase: passphrase of that file.

    Raises:
        OneRoundError: the file is no submission of this study, the study requires a signature and
            the key is missing or not the one that it lists, the packages for it are missing, or
            nothing can be written. Then the file is as it was.
    """
    path, submission = Path(path), study.submission
    site = read_submission(path, _without_keys(study)).manifest.site
    if submission.keys and key is None:
        raise OneRoundError(
            "the study requires signed submissions.",
            file=path,
            remedy=f"Give the key of {site} with --key; `oneround keys new` makes one.",
        )
    if key is not None:
        _require_the_sites_own(key, passphrase, submission, site)
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in (MANIFEST, WEIGHTS)}
        content = pack(members | {SIGNATURE: signing.sign(members, key, passphrase)})
    else:
        content = path.read_bytes()
    raise_if_fatal(examine(io.BytesIO(content), study), path)
    sealed = signing.encrypt(content, submission.encrypt_to) if submission.encrypt_to else None
    with exclusive(path.parent):  # both forms are of the same process
        if key is not None:
            write_atomic(path, content)
        if sealed is None:
            return path
        write_atomic(encrypted_path(path), sealed)
    return encrypted_path(path)


def encrypted_path(path: str | os.PathLike[str]) -> Path:
    """The path of the encrypted form of the submission at ``path``."""
    return Path(f"{os.fspath(path)}{signing.ENCRYPTED_SUFFIX}")


def _without_keys(study: Study) -> Study:
    return study.model_copy(update={"submission": SubmissionSpec()})


def _require_the_sites_own(
    key: str | os.PathLike[str], passphrase: str | None, submission: SubmissionSpec, site: str
) -> None:
    public, known = signing.public_key_of(key, passphrase), submission.keys.get(site)
    if submission.keys and public != known:
        has = f"has the key {signing.fingerprint(known)}" if known else "has no key"
        raise OneRoundError(
            f"the study {has} for {site}, this is {signing.fingerprint(public)}.",
            file=key,
            remedy="Give that key, or send the .pub file of this one to the coordinator.",
        )
