"""What went wrong, in which file, and what to do about it."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass


class OneRoundError(Exception):
    """An error that a user can act on.

    Args:
        reason: what is wrong, in one sentence.
        file: file or folder that it is about, if any.
        remedy: what to do about it, in one sentence.
    """

    def __init__(
        self, reason: str, *, file: str | os.PathLike[str] | None = None, remedy: str = ""
    ) -> None:
        self.reason = reason
        self.file = None if file is None else os.fspath(file)
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        where = f"{self.file}: " if self.file else ""
        remedy = f" Remedy: {self.remedy}" if self.remedy else ""
        return f"{where}{self.reason}{remedy}"


class RenamedWarning(FutureWarning):
    """A name of the version before is used; the message says the new one."""


def warn_renamed(what: str, new: str) -> None:
    """Warn that ``what`` is called ``new`` now; the old name works until the next version."""
    warnings.warn(f"{what} is called {new} now; use that.", RenamedWarning, stacklevel=3)


def printable(text: str, longest: int = 300) -> str:
    """Text from a stranger as one line for a terminal: control characters are escaped, and what is
    longer than ``longest`` characters is cut."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: longest + 1])
    return shown if len(text) <= longest else shown[: longest - 1] + "…"


@dataclass(frozen=True)
class Problem:
    """One thing that a check found; checks return lists of these.

    Attributes:
        code: stable identifier, e.g. ``"weights-not-finite"``.
        what: what was found.
        why: why it matters.
        remedy: what to do.
        fatal: whether the thing checked must be refused (``False``: a warning).
    """

    code: str
    what: str
    why: str
    remedy: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"[{self.code}] {self.what}. {self.why} Remedy: {self.remedy}"
