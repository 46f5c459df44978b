"""Tokens, sessions and receipts: one SQLite file in the folder of submissions.

Of a token and of a session only the SHA-256 is kept. That is enough: both are 256 random bits, so
there is nothing to guess that a slow hash or a salt could protect, as there is with passwords.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from oneround.errors import OneRoundError, Problem
from oneround.schema import now

log = logging.getLogger("oneround.web")

FILE = ".oneround.sqlite"
"""Name of the file; hidden, so that no one takes it for a submission."""

SESSION_SECONDS = 12 * 3600
"""Seconds after which a session ends."""

_TABLES = """
CREATE TABLE IF NOT EXISTS tokens (
  id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, site TEXT, once INTEGER NOT NULL,
  used INTEGER NOT NULL DEFAULT 0, created TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS sessions (
  hash BLOB PRIMARY KEY, token INTEGER NOT NULL REFERENCES tokens ON DELETE CASCADE,
  expires REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS receipts (
  id INTEGER PRIMARY KEY, site TEXT, file TEXT NOT NULL, sha256 TEXT NOT NULL,
  size INTEGER NOT NULL, modified INTEGER NOT NULL, time TEXT NOT NULL,
  accepted INTEGER NOT NULL, late INTEGER NOT NULL, problems TEXT NOT NULL
) STRICT;
"""

_COLUMNS = "site, file, sha256, size, modified, time, accepted, late, problems"


@dataclass(frozen=True)
class Token:
    """What is shown of a token.

    Attributes:
        site: Site that may log in with it; ``None``: the coordinator.
        created: Time at which it was made, UTC, ISO 8601.
    """

    site: str | None
    created: str


@dataclass(frozen=True)
class Visitor:
    """Who is logged in.

    Attributes:
        site: Site that is logged in; ``None``: the coordinator.
        csrf: Secret of the session, which every form has to send.
    """

    site: str | None
    csrf: str


@dataclass(frozen=True)
class Receipt:
    """What was done with a file that came in.

    Attributes:
        site: Site that the file is of; ``None``: the file does not say, as far as it can be read.
        file: Name of the file in the folder; of a refused upload, the name it would have had.
        sha256: SHA-256 of the file as it came.
        size: Size of the file in bytes.
        modified: Modification time of the file, in nanoseconds since 1970.
        time: Time at which the receipt was written, UTC, ISO 8601.
        accepted: Whether nothing found is fatal.
        late: Whether the file came after the deadline.
        problems: All problems found, warnings included.
    """

    site: str | None
    file: str
    sha256: str
    size: int
    modified: int
    time: str
    accepted: bool
    late: bool
    problems: tuple[Problem, ...] = ()


class State:
    """The SQLite file of ``inbox``; made if it is not there. Any thread may use it.

    Args:
        inbox: Folder of submissions.
        clock: Function for the time in seconds since 1970, which ends sessions.

    Raises:
        OneRoundError: there is no such folder, or the file cannot be used.
    """

    def __init__(self, inbox: Path, clock: Callable[[], float] = time.time) -> None:
        self._lock, self._clock = threading.Lock(), clock
        self._path = path = inbox / FILE
        self._unwritten: dict[bytes, tuple[int, float]] = {}
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._database = sqlite3.connect(
                path, timeout=10, isolation_level=None, check_same_thread=False
            )
            for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                self._database.execute(f"PRAGMA {setting}")
            self._database.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            raise OneRoundError(
                f"tokens and receipts cannot be kept here: {getattr(error, 'strerror', error)}.",
                file=path,
                remedy="Give a folder that is there and that you may write to as --inbox.",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._database.close()

    def new_token(self, site: str | None, *, once: bool = False) -> str:
        """A token that is shown only now.

        Args:
            site: Site that may log in with it; ``None``: the coordinator.
            once: Whether it can be used only once; an older one of this kind is revoked, with its
                sessions.
        """
        token = secrets.token_urlsafe(32)
        if once:
            self._do("DELETE FROM tokens WHERE once")
        self._do(
            "INSERT INTO tokens (hash, site, once, created) VALUES (?, ?, ?, ?)",
            (_hash(token), site, once, now().isoformat()),
        )
        return token

    def tokens(self) -> list[Token]:
        """All tokens that can be used more than once, by site, the coordinator's first."""
        rows = self._do("SELECT site, created FROM tokens WHERE NOT once ORDER BY site, id")
        return [Token(*row) for row in rows]

    def revoke(self, site: str | None) -> int:
        """End all tokens of ``site``, or of the coordinator (None), and all their sessions.

        Returns:
            How many tokens there were.
        """
        return len(self._do("DELETE FROM tokens WHERE site IS ? RETURNING id", (site,)))

    def log_in(self, token: str) -> str | None:
        """Secret of a new session; ``None``: there is no such token, or no longer."""
        given = _hash(token)
        rows = self._do("SELECT id, hash, once FROM tokens WHERE NOT (once AND used)")
        same = [(id_, once) for id_, known, once in rows if hmac.compare_digest(known, given)]
        if not same:
            return None
        [(number, once)] = same
        session, until = secrets.token_urlsafe(32), self._clock() + SESSION_SECONDS
        try:
            if once and not self._do(
                "UPDATE tokens SET used = 1 WHERE id = ? AND NOT used RETURNING id", (number,)
            ):
                return None
            self._do("DELETE FROM sessions WHERE expires <= ?", (self._clock(),))
            self._do("INSERT INTO sessions VALUES (?, ?, ?)", (_hash(session), number, until))
        except OneRoundError:
            if once:  # or else it could be used again
                raise
            log.warning("the disk is full: this session ends with the process")
            self._unwritten[_hash(session)] = number, until
        return session

    def visitor(self, session: str) -> Visitor | None:
        """Whose session this is; ``None``: it has ended, or there was none."""
        rows = self._do(
            "SELECT site FROM sessions JOIN tokens ON tokens.id = token "
            "WHERE sessions.hash = ? AND expires > ?",
            (_hash(session), self._clock()),
        )
        number, until = self._unwritten.get(_hash(session), (0, 0.0))
        if until > self._clock():
            rows = rows or self._do("SELECT site FROM tokens WHERE id = ?", (number,))
        if not rows:
            return None
        return Visitor(rows[0][0], hmac.digest(session.encode(), b"csrf", "sha256").hex())

    def log_out(self, session: str) -> None:
        """End a session."""
        self._unwritten.pop(_hash(session), None)
        self._do("DELETE FROM sessions WHERE hash = ?", (_hash(session),))

    def add(self, receipt: Receipt) -> int:
        """Number of a receipt that is kept from now on; it is on the disk when this returns."""
        problems = json.dumps([asdict(problem) for problem in receipt.problems])
        rows = self._do(
            f"INSERT INTO receipts ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
            (receipt.site, receipt.file, receipt.sha256, receipt.size, receipt.modified,
             receipt.time, receipt.accepted, receipt.late, problems),
        )  # fmt: skip
        return int(rows[0][0])

    def receipt(self, number: int) -> Receipt | None:
        """The receipt of this number; ``None``: there is none."""
        rows = self._do(f"SELECT {_COLUMNS} FROM receipts WHERE id = ?", (number,))
        return _receipt(*rows[0]) if rows else None

    def receipts(self, site: str | None = None, limit: int = -1) -> dict[int, Receipt]:
        """The last receipts of ``site``, or of all (None), by number, the last one first."""
        rows = self._do(
            f"SELECT id, {_COLUMNS} FROM receipts WHERE ?1 IS NULL OR site = ?1 "
            "ORDER BY id DESC LIMIT ?2",
            (site, limit),
        )
        return {number: _receipt(*row) for number, *row in rows}

    def _do(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        try:
            with self._lock:
                return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise OneRoundError(
                f"tokens and receipts cannot be read or kept: {error}.",
                file=self._path,
                remedy="Make room on the disk. If the file is damaged, move it away: then sites "
                "need new tokens, and the submissions stay.",
            ) from error


def _receipt(*row: Any) -> Receipt:
    *facts, accepted, late, text = row
    problems = tuple(Problem(**problem) for problem in json.loads(text))
    return Receipt(*facts, bool(accepted), bool(late), problems)  # type: ignore[call-arg]


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
