"""Who has handed in, what is wrong with it, who is missing, and whether it is enough."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, computed_field

from oneround.errors import OneRoundError, Problem
from oneround.schema import now
from oneround.signing import ENCRYPTED_SUFFIX, Identity
from oneround.study import Study
from oneround.submission import (
    FILE_NAME,
    Submission,
    check_submission,
    check_together,
    read_submission,
)


class HandedIn(BaseModel):
    """One file that came in.

    Attributes:
        file: its name.
        bytes: its size.
        received: modification time of the file, UTC.
        late: whether that is after the study's deadline.
        site: who hands in, as the file says; ``None``: it cannot be read so far.
        signed_by: fingerprint of the key, compared with the study.
        sha256: of the submission, before encryption.
        problems: everything found, warnings included.
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
    def accepted(self) -> bool:
        """Whether nothing found is fatal."""
        return not any(problem.fatal for problem in self.problems)


class Status(BaseModel):
    """The state of a study.

    Attributes:
        study: its name.
        files: all that came in, by name.
        missing: sites of the study of which no file is accepted.
        together: problems of accepted files together, such as two of one site.
        at_least: k of n.
        deadline: of the study.
        now: when this was found out.
    """

    study: str
    files: list[HandedIn]
    missing: list[str]
    together: list[Problem]
    at_least: int
    deadline: datetime | None
    now: datetime

    @computed_field  # type: ignore[prop-decorator]
    @property
    def accepted(self) -> int:
        """Number of sites of which a file is accepted."""
        return len({file.site for file in self.files if file.accepted})

    @computed_field  # type: ignore[prop-decorator]
    @property
    def enough(self) -> bool:
        """Whether the global model can be made: k are accepted and go together."""
        return self.accepted >= self.at_least and not self.together


def status_of(
    study: Study,
    paths: Iterable[str | os.PathLike[str]],
    *,
    identity: Identity | None = None,
    at: datetime | None = None,
    look: Callable[[Path], tuple[HandedIn, Submission | None]] | None = None,
) -> Status:
    """Check files against the study, each and all together.

    Args:
        study: the agreement.
        paths: files, from anyone; their modification time counts as the time they came. The
            encrypted form of one that is accepted is passed over.
        identity: opens encrypted ones.
        at: the time in UTC; that of the clock by default.
        look: in place of :func:`examine`, for who remembers files that have not changed.
    """
    at = at or now()
    look = look or (lambda path: examine(path, study, identity))
    files, good = [], []
    accepted: set[Path] = set()
    for path in sorted(map(Path, paths)):  # a plain file comes before its encrypted form
        if path.suffix == ENCRYPTED_SUFFIX and path.with_suffix("") in accepted:
            continue
        found, submission = look(path)
        accepted |= {path} if submission else set()
        files.append(found)
        good += [submission] if submission else []
    there = {submission.manifest.site for submission in good}
    return Status(
        study=study.name,
        files=files,
        missing=[site for site in expected_sites(study) if site not in there],
        together=check_together(good),
        at_least=study.submission.at_least,
        deadline=study.submission.deadline,
        now=at,
    )


def expected_sites(study: Study) -> Sequence[str]:
    """Those who are asked to hand in: the study's sites, or else all that have a key."""
    return study.sites or tuple(study.submission.keys)


def submissions_in(folder: str | os.PathLike[str]) -> list[Path]:
    """The files in a folder that may be submissions, by name.

    Raises:
        OneRoundError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise OneRoundError("there is no such folder.", file=folder, remedy="Check the path.")
    names = {path.name for path in folder.iterdir() if path.is_file()}
    return [folder / name for name in sorted(names) if FILE_NAME.fullmatch(name)]


def examine(
    path: Path, study: Study, identity: Identity | None = None
) -> tuple[HandedIn, Submission | None]:
    """What there is to know of one file, and the submission if nothing is wrong with it.

    Raises:
        OneRoundError: a signature or an encrypted file, and the packages for it are missing.
    """
    problems = check_submission(path, study, identity=identity)
    accepted = not any(problem.fatal for problem in problems)
    submission = read_submission(path, study, identity=identity) if accepted else None
    deadline = study.submission.deadline
    stat = path.stat() if path.exists() else None
    received = datetime.fromtimestamp(stat.st_mtime if stat else 0, UTC)
    found = HandedIn(
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
