"""Who has submitted, what is wrong with it, who is missing, and whether it is enough.

:class:`Inbox` is the coordinator's folder of submissions, and the one way in.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace as changed
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, computed_field
from torch import nn

from oneround import signing
from oneround.errors import OneRoundError, Problem
from oneround.files import exclusive, sync_folder
from oneround.schema import now
from oneround.signing import ENCRYPTED_SUFFIX, Identity
from oneround.study import Study
from oneround.submission import (
    FILE_NAME,
    LIMIT_BYTES,
    Submission,
    check_submission,
    check_together,
    read_submission,
)


class Received(BaseModel):
    """One file that was received.

    Attributes:
        file: Name of the file, without folder.
        bytes: Size of the file in bytes.
        received: Modification time of the file, UTC.
        late: Whether the file was received after the study's deadline.
        site: Site that submits, as the file says; ``None``: the file cannot be read so far.
        signed_by: Fingerprint of the site's key, compared with the study.
        sha256: SHA-256 of the submission, before encryption.
        problems: All problems found, warnings included.
    """

    file: str
    bytes: int
    received: datetime
    late: bool
    site: str | None
    signed_by: str | None
    sha256: str | None
    problems: list[Problem]

    @property
    def fatal(self) -> list[Problem]:
        """Problems for which the file is refused."""
        return [problem for problem in self.problems if problem.fatal]

    @property
    def accepted(self) -> bool:
        """Whether nothing found is fatal."""
        return not self.fatal


Checked = tuple[Received, Submission | None]
"""What is known of a file, and the submission in it if the file is accepted."""


class Status(BaseModel):
    """The state of a study.

    Attributes:
        study: Name of the study.
        files: All files received, by name.
        missing: Sites of the study without an accepted file.
        together: Problems of the accepted files together, such as two of one site.
        at_least: Number of submissions that are needed (k of n).
        deadline: Deadline of the study.
        now: Time of the check, UTC.
    """

    study: str
    files: list[Received]
    missing: list[str]
    together: list[Problem]
    at_least: int
    deadline: datetime | None
    now: datetime

    @computed_field  # type: ignore[prop-decorator]
    @property
    def accepted(self) -> int:
        """Number of sites with an accepted file."""
        return len({file.site for file in self.files if file.accepted})

    @computed_field  # type: ignore[prop-decorator]
    @property
    def enough(self) -> bool:
        """Whether the global model can be made: k are accepted and go together."""
        return self.accepted >= self.at_least and not self.together

    @property
    def rows(self) -> list[tuple[str | None, Received | None]]:
        """Site and file, by file, then the missing sites without one.

        A file that is refused is in the row of the missing site that it is named after; what it
        says of itself is not known.
        """
        rows = [(file.site or _named_after(file.file, self.missing), file) for file in self.files]
        there = {site for site, _ in rows}
        return [*rows, *((site, None) for site in self.missing if site not in there)]


class Inbox:
    """The coordinator's folder of submissions, and the one way in, :meth:`take`.

    Other programs may put files into the folder, too; these are checked and count like any other.
    Any thread may use an inbox.

    Args:
        folder: Folder of submissions.
        study: The agreement between the sites.
        identity: The coordinator's identity, which opens encrypted files.
        limit: Largest size in bytes of a file that is taken.

    Raises:
        OneRoundError: the study asks for encrypted files and there is no identity.
    """

    def __init__(
        self, folder: Path, study: Study, identity: Identity | None = None, limit: int = LIMIT_BYTES
    ) -> None:
        if study.submission.encrypt_to and identity is None:
            raise OneRoundError(
                "the study asks for encrypted files, which nobody here can check.",
                remedy="Give the .identity file of the coordinator with --identity.",
            )
        self.folder, self.study, self.identity, self.limit = folder, study, identity, limit
        self._known: dict[tuple[str, int, int, int], Checked] = {}
        self._checking, self._taking = threading.Lock(), threading.Lock()

    def status(self) -> Status:
        """The state of the study; a file that has not changed is not checked again."""
        with self._checking:
            found = status_of(self.study, submissions_in(self.folder), check=self._check)
            there = {file.file for file in found.files}
            self._known = {key: value for key, value in self._known.items() if key[0] in there}
            return found

    @property
    def sites(self) -> set[str]:
        """Sites with an accepted file."""
        return {file.site for file in self.status().files if file.accepted and file.site}

    def complete(self) -> bool:
        """Whether all sites that the study knows have submitted."""
        expected = expected_sites(self.study)
        return bool(expected) and self.sites.issuperset(expected)

    def enough(self, notes: Sequence[str] = ()) -> list[Path]:
        """The accepted files.

        Args:
            notes: What went wrong on the way, for the error.

        Raises:
            OneRoundError: there are fewer than k, or they do not go together.
        """
        found = self.status()
        if not found.enough:
            counts = f"{found.accepted} submission(s) of the {found.at_least} that are needed."
            raise OneRoundError(
                " ".join([counts, *notes, *map(str, found.together)]),
                file=self.folder,
                remedy="See to these sites, then start the same run again: it continues from here.",
            )
        return [self.folder / file.file for file in found.files if file.accepted]

    def take(self, part: Path, *, sender: str | None = None, replace: bool = False) -> Received:
        """Check a file that has come, and give it its name in the folder if it is accepted.

        An accepted file is never silently replaced or lost: this is where that is decided.
        Killed at any moment, a process leaves the earlier file or the new one, whole.

        Args:
            part: Hidden file in the folder, whole and on the disk. It stays if it is refused.
            sender: Site that sent the file; ``None``: what the file says counts.
            replace: Whether an accepted file of the same site may be replaced.

        Returns:
            What was found, under the name that the file has or would have had.

        Raises:
            OneRoundError: as :func:`examine`.
        """
        with self._taking, exclusive(self.folder):
            found, submission = examine(part, self.study, self.identity, self.limit)
            problems = [*found.problems, *self._obstacles(found, sender, replace)]
            site = sender or found.site
            name = _forms(site)[_is_encrypted(part)] if site else part.name
            found = found.model_copy(update={"file": name, "problems": problems})
            if site and submission and found.accepted:
                self._place(part, site, name)
                with self._checking:
                    self._remember(self.folder / name, found, submission)
            return found

    def _obstacles(self, found: Received, sender: str | None, replace: bool) -> Iterator[Problem]:
        """What keeps a file out that is right in itself."""
        site = found.site
        if site is None:
            return
        if sender not in (None, site):
            yield Problem(
                "other-site", f"the file is of {site!r}, and {sender!r} has sent it",
                "A site submits its own file only.", f"Choose the file of {sender}.",
            )  # fmt: skip
            return
        for there in self._kept():
            if (there.file in _forms(site)) != (there.site == site):
                whose = f"a file of {there.site!r}" if there.site else "which cannot be read now"
                yield Problem(
                    "name-taken", f"{there.file} is here, {whose}",
                    "It came another way, and is left alone.",
                    "Ask the coordinator to take it away first.",
                )  # fmt: skip
            elif there.site == site and not replace:
                yield Problem(
                    "already-here", f"an accepted file of {site!r} is here, {there.file}",
                    "It is not replaced by accident.",
                    "To replace it, tick the box on the coordinator's page and send the new one "
                    "again, or ask the coordinator to take it away first.",
                )  # fmt: skip

    def _kept(self) -> list[Received]:
        """Accepted files, also those that :meth:`status` passes over, and what might be one."""
        with self._checking:
            found = [self._check(path)[0] for path in submissions_in(self.folder)]
        return [f for f in found if f.accepted or f.problems[0].code == "unreadable"]

    def _place(self, part: Path, site: str, name: str) -> None:
        part.chmod(0o600)  # for the coordinator alone, as the images would be
        os.replace(part, self.folder / name)
        for other in {*_forms(site)} - {name}:
            (self.folder / other).unlink(missing_ok=True)  # what it replaces, encrypted or not
        sync_folder(self.folder)

    def _check(self, path: Path) -> Checked:
        known = self._known.get(_key(path))
        return known or self._remember(path, *examine(path, self.study, self.identity))

    def _remember(self, path: Path, found: Received, submission: Submission | None) -> Checked:
        """Without the client model, which is large and not looked at here."""
        light = submission and changed(submission, model=nn.Identity(), path=path)
        self._known[_key(path)] = found, light
        return found, light


def status_of(
    study: Study,
    paths: Iterable[str | os.PathLike[str]],
    *,
    identity: Identity | None = None,
    check: Callable[[Path], Checked] | None = None,
) -> Status:
    """Check files against the study, each and all together.

    Args:
        study: The agreement between the sites.
        paths: Files, from anyone; their modification time counts as the time they came. The
            encrypted form of one that is accepted is passed over if both are the same submission.
        identity: The coordinator's identity, which opens encrypted files.
        check: Function in place of :func:`examine`, which may remember files.
    """
    check = check or (lambda path: examine(path, study, identity))
    files, good = [], []
    accepted: dict[Path, str] = {}
    for path in sorted(map(Path, paths)):  # a plain file comes before its encrypted form
        found, submission = check(path)
        if submission:
            if path.suffix == ENCRYPTED_SUFFIX and (
                accepted.get(path.with_suffix("")) == submission.sha256
            ):
                continue  # the hash is that before encryption: the same site, the same content
            accepted[path] = submission.sha256
        files.append(found)
        good += [submission] if submission else []
    there = {submission.manifest.site for submission in good}
    return Status(
        study=study.name,
        files=files,
        missing=[site for site in expected_sites(study) if site not in there],
        together=check_together(good),
        at_least=study.at_least,
        deadline=study.submission.deadline,
        now=now(),
    )


def expected_sites(study: Study) -> Sequence[str]:
    """Sites that are asked to submit: the study's, or else all that have a key."""
    return study.expected_sites


def submissions_in(folder: str | os.PathLike[str]) -> list[Path]:
    """The files in a folder that may be submissions, by name.

    Raises:
        OneRoundError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise OneRoundError("there is no such folder.", file=folder, remedy="Check the path.")
    names = {entry.name for entry in os.scandir(folder) if _may_be_file(entry)}
    return [folder / name for name in sorted(names) if FILE_NAME.fullmatch(name)]


def _may_be_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a check will say so
        return True


def examine(
    path: Path, study: Study, identity: Identity | None = None, limit: int = LIMIT_BYTES
) -> Checked:
    """What there is to know of one file, and the submission if nothing is wrong with it.

    Raises:
        OneRoundError: a signature or an encrypted file, and the packages for it are missing.
    """
    problems = check_submission(path, study, identity=identity, limit_bytes=limit)
    submission = None
    if not any(problem.fatal for problem in problems):
        try:
            submission = read_submission(path, study, identity=identity, limit_bytes=limit)
        except OneRoundError as error:  # it was right a moment ago
            problems = [*problems, _changed_meanwhile(error)]
    deadline = study.submission.deadline
    try:
        stat = path.stat()
    except OSError:
        stat = None
    received = datetime.fromtimestamp(stat.st_mtime if stat else 0, UTC)
    found = Received(
        file=path.name,
        bytes=stat.st_size if stat else 0,
        received=received,
        late=deadline is not None and received > deadline,
        site=submission.manifest.site if submission else None,
        signed_by=submission.signed_by if submission else None,
        sha256=submission.sha256 if submission else None,
        problems=problems,
    )
    return found, submission


def _named_after(file: str, sites: Sequence[str]) -> str | None:
    return next((site for site in sites if file in _forms(site)), None)


def _changed_meanwhile(error: OneRoundError) -> Problem:
    return Problem(
        "unreadable",
        "the file has changed or vanished while it was checked",
        f"Another program works with it ({error.reason[:200]}).",
        "Run the command again.",
    )


def _forms(site: str) -> tuple[str, str]:
    """What the file of a site may be called in the folder: plain, and encrypted."""
    return f"{site}.oneround", f"{site}.oneround{ENCRYPTED_SUFFIX}"


def _is_encrypted(path: Path) -> bool:
    with path.open("rb") as file:
        return signing.is_encrypted(file.read(64))


def _key(path: Path) -> tuple[str, int, int, int]:
    """Differs when the file, its name or its permissions have changed."""
    try:
        stat = path.stat()
    except OSError:  # somebody has taken it away just now
        return path.name, 0, 0, 0
    return path.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
