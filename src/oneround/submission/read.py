"""Read a submission: its client model, or everything that is wrong with the file."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, ParamSpec, TypeVar

import torch
from torch import nn

from oneround import models, signing
from oneround.errors import OneRoundError, Problem
from oneround.files import sha256
from oneround.study import Study
from oneround.submission import checks, weights
from oneround.submission.container import (
    LIMIT_BYTES,
    MANIFEST,
    SIGNATURE,
    WEIGHTS,
    Refused,
    open_archive,
    read_member,
    refuse,
    require_packed,
)
from oneround.submission.manifest import Manifest, Submission
from oneround.submission.probes import check_outputs

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Findings:
    """What an examination found, and what it could read on the way.

    Attributes:
        problems: problems in the order in which they were found, warnings included.
        manifest: manifest, if it is valid.
        tensors: weights by name, if their header is valid.
        model: client model, if there is no fatal problem.
        sha256: SHA-256 of the file, before encryption.
        size: size of the file, in bytes.
        signed_by: fingerprint of the key that signed it, if that is the site's.
    """

    problems: list[Problem] = field(default_factory=list)
    manifest: Manifest | None = None
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    model: nn.Module | None = None
    sha256: str = ""
    size: int = 0
    signed_by: str | None = None

    @property
    def fatal(self) -> list[Problem]:
        """The problems for which the submission must be refused."""
        return [problem for problem in self.problems if problem.fatal]

    def attempt(self, stage: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """The result of one stage, or ``None`` if it was refused; its problems are recorded."""
        try:
            return stage(*args, **kwargs)
        except Refused as refused:
            self.problems += refused.problems
            return None


def check_submission(
    path: str | os.PathLike[str],
    study: Study | None = None,
    *,
    identity: signing.Identity | None = None,
    limit_bytes: int = LIMIT_BYTES,
) -> list[Problem]:
    """Every problem of the file at ``path``, warnings included; never raises on its content.

    Args:
        path: submission, or any file from anyone.
        study: agreement to compare with; if it lists keys, the file must be signed with the
            site's.
        identity: private key for files that were encrypted to it.
        limit_bytes: size above which a file is refused; memory stays below about twice this.

    Raises:
        OneRoundError: the file is signed or encrypted, and the packages for that are missing.
    """
    return _examine_path(path, study, identity, limit_bytes).problems


def read_submission(
    path: str | os.PathLike[str],
    study: Study | None = None,
    *,
    identity: signing.Identity | None = None,
    limit_bytes: int = LIMIT_BYTES,
) -> Submission:
    """The submission at ``path``; arguments as for :func:`check_submission`.

    Raises:
        OneRoundError: the file has fatal problems; the message lists all.
    """
    return _submission(_examine_path(path, study, identity, limit_bytes), path)


def _submission(found: Findings, path: str | os.PathLike[str]) -> Submission:
    """What was found in a file without fatal problems.

    Raises:
        OneRoundError: there are fatal problems; the message lists all.
    """
    raise_if_fatal(found, path)
    assert found.manifest is not None
    assert found.model is not None
    return Submission(
        found.manifest, found.model, found.sha256, found.size, Path(path), found.signed_by
    )


def read_submissions(
    paths: Iterable[str | os.PathLike[str]],
    study: Study,
    *,
    identity: signing.Identity | None = None,
    exclude: Collection[str] = (),
) -> list[Submission]:
    """All submissions of a study, in the order of their sites' names.

    Args:
        paths: one file for each site.
        study: agreement that they must belong to.
        identity: private key for encrypted files.
        exclude: sites whose files are passed over, whatever is wrong with them.

    Raises:
        OneRoundError: there are fatal problems of files, or of the files together; the message
            lists all.
    """
    submissions, refusals = [], []
    for path in paths:
        try:
            found = _examine_path(path, study, identity, LIMIT_BYTES)
            if found.manifest is None or found.manifest.site not in exclude:
                submissions.append(_submission(found, path))
        except OneRoundError as error:
            refusals.append(str(error))
    refusals += [str(problem) for problem in checks.check_together(submissions)]
    if not submissions and not refusals:
        refusals = ["No submission was given."]
    if refusals:
        raise OneRoundError(
            "\n".join(["the submissions cannot be used together:", *refusals]),
            remedy="Correct or leave out these files, then run the same command again.",
        )
    return sorted(submissions, key=lambda submission: submission.manifest.site)


def examine(
    file: io.BufferedReader | io.BufferedRandom | io.BytesIO,
    study: Study | None,
    *,
    ask: bool = True,
) -> Findings:
    """Examine an open file from the outside in; a problem ends only what depends on it.

    Args:
        file: the file.
        study: agreement to compare with.
        ask: whether the client model, if nothing else is wrong, is asked for its outputs.
    """
    found = Findings(size=file.seek(0, os.SEEK_END))
    file.seek(0)
    found.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    archive = found.attempt(open_archive, file, found.size)
    if archive is None:
        return found
    found.attempt(require_packed, file, archive)
    expected = None
    if (text := found.attempt(read_member, archive, MANIFEST)) is not None:
        found.manifest = found.attempt(checks.parse_manifest, text)
    if found.manifest is not None:
        found.problems += checks.check_manifest(found.manifest)
        if study is not None:
            found.problems += checks.check_against_study(found.manifest, study)
        expected = found.attempt(checks.expected_tensors, found.manifest, study)
    if (content := found.attempt(read_member, archive, WEIGHTS)) is not None:
        signed = {MANIFEST: text or b"", WEIGHTS: content}
        signature = None
        if SIGNATURE in archive.namelist():
            signature = found.attempt(read_member, archive, SIGNATURE)
        if _examine_signature(signed, signature, study, found):
            _examine_weights(content, expected, found)
    if ask and found.manifest is not None and found.tensors and not found.fatal:
        found.problems += weights.check_range(found.tensors)
        found.model = _restore(found.manifest, found.tensors)
        found.problems += check_outputs(found.model, found.manifest)
    return found


def raise_if_fatal(findings: Findings, path: str | os.PathLike[str]) -> None:
    """Refuse a file with fatal problems.

    Raises:
        OneRoundError: there are any; the message lists all.
    """
    if fatal := findings.fatal:
        raise OneRoundError(
            " ".join(f"{problem.what} [{problem.code}]. {problem.why}" for problem in fatal),
            file=path,
            remedy=" ".join(dict.fromkeys(problem.remedy for problem in fatal)),
        )


_NOT_ENCRYPTED = Problem(
    "not-encrypted",
    "the study asks for encrypted files, and this one is not",
    "Images can be synthesized from a client model, so it is to be protected like the images.",
    "Run oneround seal before it leaves the site. If it has left, ask the site which way it came.",
    fatal=False,
)


def _examine_path(
    path: str | os.PathLike[str],
    study: Study | None,
    identity: signing.Identity | None,
    limit_bytes: int,
) -> Findings:
    try:
        with _open(Path(path), limit_bytes) as file:
            if not signing.is_encrypted(file.read(64)):
                found = examine(file, study)
                if study is not None and study.submission.encrypt_to:
                    found.problems.append(_NOT_ENCRYPTED)
                return found
            file.seek(0)
            with tempfile.TemporaryFile() as plain:  # has no name, and is gone when it is closed
                _decrypt(file, plain, identity)
                found = examine(plain, study)
            found.size = os.fstat(file.fileno()).st_size
            return found
    except Refused as refused:
        return Findings(list(refused.problems))
    except OSError as error:
        what = f"the file cannot be read: {error.strerror or error}"
        remedy = "Check its permissions and the disk that it is on."
        return Findings([Problem("unreadable", what, "Nothing could be checked.", remedy)])


def _open(path: Path, limit_bytes: int) -> io.BufferedReader:
    if not path.is_file():
        refuse(
            "not-a-file",
            "this is a folder or a device" if path.exists() else "there is no such file",
            "A submission is one regular file.",
            "Check the path; it must be that of the .oneround file itself.",
        )
    if (size := path.stat().st_size) > limit_bytes:
        refuse(
            "too-large",
            f"the file has {size} bytes, the limit is {limit_bytes}",
            "The limit keeps a hostile file from filling the memory.",
            "Raise the limit if the study's network is really that large.",
        )
    return path.open("rb")


def _decrypt(encrypted: BinaryIO, plain: BinaryIO, identity: signing.Identity | None) -> None:
    if identity is None:
        refuse(
            "encrypted",
            "the file is encrypted",
            "Only the owner of the key that it was encrypted to can open it.",
            "The coordinator gives --identity; a site inspects the file before its encryption.",
        )
    try:
        identity.decrypt(encrypted, plain)
    except signing.WrongIdentityError as error:
        refuse(
            "other-recipient",
            f"the given key does not open the file ({str(error)!r})",
            "It was encrypted to another key, or was changed on its way.",
            "Compare encrypt_to in the site's study with the .recipient file, and send it again.",
        )


def _examine_signature(
    signed: dict[str, bytes], signature: bytes | None, study: Study | None, found: Findings
) -> bool:
    """Whether the weights may be read: the study lists no keys, or the signature is valid."""
    known = study.submission.keys if study else {}
    if not known:
        if signature is not None:
            found.problems.append(_not_compared())
        return True
    if found.manifest is None:
        return False
    site = found.manifest.site
    try:
        checks.check_signature(signed, signature, known.get(site), site)
    except Refused as refused:
        found.problems += refused.problems
        return False
    found.signed_by = signing.fingerprint(known[site])
    return True


def _not_compared() -> Problem:
    what = "the signature was not compared with any key"
    why = "No study was given, or it lists no keys."
    remedy = "Give --study; `oneround study keys` adds the keys of the sites to a study."
    return Problem("signature-not-compared", what, why, remedy, fatal=False)


def _examine_weights(
    content: bytes, expected: dict[str, torch.Tensor] | None, found: Findings
) -> None:
    manifest = found.manifest
    if manifest and sha256(content) != manifest.weights_sha256:
        found.problems.append(
            Problem(
                "weights-hash",
                "the weights are not those that the manifest names",
                "They were replaced or changed after the site wrote the manifest.",
                "Ask the site to write the submission again, and compare its SHA-256 with them.",
            )
        )
    header = found.attempt(weights.parse_header, content)
    if header is None:
        return
    if expected is not None:
        found.problems += weights.compare(header, expected)
    found.tensors = weights.views(content, header)
    found.problems += weights.check_values(found.tensors)


def _restore(manifest: Manifest, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """The client model; building it leaves the caller's random state as it was."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        model = models.build(manifest.architecture, manifest.image, len(manifest.classes))
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)
