"""What is done with a file that a site sends by the page: taken or refused, and written down.

The order is such that a process killed at any moment loses no accepted file: the content is on the
disk, then it gets its name, then the folder is on the disk, then the receipt; only then the site
is answered. What a killed process has left undone, the next one does at its start.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace as changed
from pathlib import Path

from filelock import FileLock, Timeout

from oneround.coordinator.inbox import Inbox, Received
from oneround.errors import OneRoundError, Problem
from oneround.files import sha256
from oneround.schema import now
from oneround.web.database import Receipt, State

log = logging.getLogger("oneround.web")

PART = ".upload-{}.part"
"""Hidden name of a file that is not whole or not checked yet."""


class Intake:
    """An inbox with receipts; one process at a time takes files for it.

    Args:
        inbox: Folder of submissions.

    Attributes:
        inbox: Folder of submissions.
        state: Tokens, sessions and receipts.

    Raises:
        OneRoundError: another process takes files for this folder, or it cannot be used.
    """

    def __init__(self, inbox: Inbox) -> None:
        self.inbox, self.state = inbox, State(inbox.folder)
        self._lock, self._receiving = FileLock(inbox.folder / ".oneround.lock"), threading.Lock()
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise OneRoundError(
                "another process takes files for this folder.",
                file=inbox.folder,
                remedy="Stop the other `oneround serve`, or choose another --inbox.",
            ) from error
        self._reconcile()

    def close(self) -> None:
        """Let another process take over."""
        self._lock.release()

    def receive(self, site: str, part: Path, digest: str, *, replace: bool = False) -> int:
        """Take or refuse a file that a site has sent.

        Args:
            site: Site that is logged in.
            part: Hidden file in the folder, whole and on the disk.
            digest: SHA-256 of it.
            replace: Whether an accepted file of the site may be replaced.

        Returns:
            Number of the receipt.
        """
        with self._receiving:
            modified = part.stat().st_mtime_ns
            found = self.inbox.take(part, sender=site, replace=replace)
            return self._write(found, site, digest, modified)

    def _write(self, found: Received, site: str | None, digest: str, modified: int) -> int:
        problems = tuple(self._without_paths(problem) for problem in found.problems)
        return self.state.add(
            Receipt(
                site, found.file, digest, found.bytes, modified, now().isoformat(),
                found.accepted, found.late, problems,
            )
        )  # fmt: skip

    def _reconcile(self) -> None:
        """After a start: remove what broke off; write down what came another way or just before."""
        for part in self.inbox.folder.glob(PART.format("*")):
            part.unlink(missing_ok=True)
        known = {(r.file, r.size, r.modified) for r in self.state.receipts().values()}
        for file in self.inbox.status().files:
            path = self.inbox.folder / file.file
            try:
                stat = path.stat()
                if (file.file, stat.st_size, stat.st_mtime_ns) not in known:
                    self._write(file, file.site, sha256(path), stat.st_mtime_ns)
            except (OSError, OneRoundError) as error:  # it vanished, or cannot be read
                log.warning("%s: no receipt (%s)", path, error)

    def _without_paths(self, problem: Problem) -> Problem:
        if self.inbox.identity is None:
            return problem
        shown = str(self.inbox.identity.path)
        return changed(problem, what=problem.what.replace(shown, "the key of the coordinator"))
