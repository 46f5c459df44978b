"""What is done with a file that comes in: checked, kept or refused, and written down.

The order is such that a process killed at any moment loses no accepted file: the content is on the
disk, then it gets its name, then the folder is on the disk, then the receipt; only then the site
is told. What a killed process has left undone, the next one does at its start.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout
from torch import nn

from oneround import signing
from oneround.coordinator.inbox import HandedIn, Status, examine, status_of, submissions_in
from oneround.errors import OneRoundError, Problem
from oneround.files import sha256, sync_folder
from oneround.schema import now
from oneround.signing import Identity
from oneround.study import Study
from oneround.submission import LIMIT_BYTES, Submission
from oneround.web.database import Receipt, State

PARTS = ".upload-*.part"

Looked = tuple[HandedIn, Submission | None]


@dataclass(frozen=True)
class Arrived:
    """A file under a hidden name, whole and on the disk.

    Attributes:
        path: the hidden file.
        size: in bytes.
        sha256: of it.
        replace: whether an accepted file of the site may be replaced.
    """

    path: Path
    size: int
    sha256: str
    replace: bool


class Desk:
    """The folder of submissions, which one desk at a time looks after.

    Args:
        study: the agreement.
        inbox: the folder.
        identity: opens encrypted files.
        limit: bytes of a file.

    Raises:
        OneRoundError: another process is at this folder, it cannot be used, or the study wants
            encrypted files and there is no identity.
    """

    def __init__(
        self, study: Study, inbox: Path, identity: Identity | None = None, limit: int = LIMIT_BYTES
    ) -> None:
        if study.submission.encrypt_to and identity is None:
            raise OneRoundError(
                "the study wants encrypted files, which nobody here can check.",
                remedy="Give the .identity file of the coordinator with --identity.",
            )
        self.study, self.inbox, self.identity, self.limit = study, inbox, identity, limit
        self.state = State(inbox)
        self._lock = FileLock(inbox / ".oneround.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise OneRoundError(
                "another process takes files for this folder.",
                file=inbox,
                remedy="Stop the other `oneround serve`, or choose another --inbox.",
            ) from error
        self._known: dict[tuple[str, int, int], Looked] = {}
        self._looking, self._placing = threading.Lock(), threading.Lock()
        self._reconcile()

    def close(self) -> None:
        """Let another process take over."""
        self._lock.release()

    def status(self) -> Status:
        """The state of the study; a file that has not changed is not checked again."""
        with self._looking:
            paths = submissions_in(self.inbox)
            found = status_of(self.study, paths, look=self._look)
            there = {file.file for file in found.files}
            self._known = {key: value for key, value in self._known.items() if key[0] in there}
            return found

    def receive(self, site: str, arrived: Arrived) -> int:
        """Keep or refuse a file that ``site`` has sent; the number of the receipt."""
        with self._placing:
            name = f"{site}.oneround" + (".age" if _is_encrypted(arrived.path) else "")
            found, submission = examine(arrived.path, self.study, self.identity)
            problems = [self._without_paths(problem) for problem in found.problems]
            if submission:
                problems += self._obstacles(site, found, name, arrived.replace)
            receipt = Receipt(
                site, name, arrived.sha256, arrived.size, arrived.path.stat().st_mtime_ns, now().isoformat(),
                accepted=not any(problem.fatal for problem in problems), late=found.late,
                problems=tuple(problems),
            )  # fmt: skip
            if receipt.accepted and submission:
                self._place(arrived.path, name)
                kept = found.model_copy(update={"file": name})
                with self._looking:
                    self._remember(self.inbox / name, kept, submission)
            return self.state.add(receipt)

    def _obstacles(self, site: str, found: HandedIn, name: str, may: bool) -> Iterator[Problem]:
        """What is wrong with a right file, sent by ``site``, here and now."""
        if found.site != site:
            yield Problem(
                "other-site", f"the file is of {found.site!r}, and {site!r} is logged in",
                "A site hands in its own file only.", f"Choose the file of {site}.",
            )  # fmt: skip
            return
        own = {f"{site}.oneround", f"{site}.oneround.age"}
        for file in self.status().files:
            if (file.file in own) != (file.site == site) and file.accepted:
                yield Problem(
                    "name-taken", f"{file.file} is here, a file of {file.site!r}",
                    "It came another way than by this page, which leaves it alone.",
                    "Ask the coordinator to take it away first.",
                )  # fmt: skip
            elif file.file in own and file.accepted and not may:
                yield Problem(
                    "already-here", f"an accepted file of {site!r} is here",
                    "It is not replaced by accident.",
                    "Tick the box to replace it, and send the file again.",
                )  # fmt: skip

    def _place(self, part: Path, name: str) -> None:
        os.replace(part, self.inbox / name)
        for other in {name.removesuffix(".age"), f"{name.removesuffix('.age')}.age"} - {name}:
            (self.inbox / other).unlink(missing_ok=True)  # what it replaces, encrypted or not
        sync_folder(self.inbox)

    def _reconcile(self) -> None:
        """After a start: remove what broke off; write down what came another way or just before."""
        for part in self.inbox.glob(PARTS):
            part.unlink(missing_ok=True)
        known = {(r.file, r.size, r.modified) for r in self.state.receipts().values()}
        for file in self.status().files:
            path = self.inbox / file.file
            stat = path.stat()
            if (file.file, stat.st_size, stat.st_mtime_ns) in known:
                continue
            self.state.add(
                Receipt(
                    file.site, file.file, sha256(path), stat.st_size, stat.st_mtime_ns, now().isoformat(),
                    file.accepted, file.late, tuple(file.problems),
                )
            )  # fmt: skip

    def _look(self, path: Path) -> Looked:
        known = self._known.get(_key(path))
        if known is None:
            known = self._remember(path, *examine(path, self.study, self.identity))
        return known

    def _remember(self, path: Path, found: HandedIn, submission: Submission | None) -> Looked:
        """Without the client model, which is large and not looked at here."""
        light = submission and replace(submission, model=nn.Identity(), path=path)
        self._known[_key(path)] = found, light
        return found, light

    def _without_paths(self, problem: Problem) -> Problem:
        if self.identity is None:
            return problem
        shown = problem.what.replace(str(self.identity.path), "the key of the coordinator")
        return replace(problem, what=shown)


def _key(path: Path) -> tuple[str, int, int]:
    try:
        stat = path.stat()
    except FileNotFoundError:  # somebody has taken it away just now
        return path.name, 0, 0
    return path.name, stat.st_size, stat.st_mtime_ns


def _is_encrypted(path: Path) -> bool:
    with path.open("rb") as file:
        return signing.is_encrypted(file.read(64))
