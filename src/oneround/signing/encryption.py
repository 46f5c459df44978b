"""Encryption in the age format: who alone can read a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from oneround.errors import OneRoundError
from oneround.signing.keys import AGE_HEADER, package, read_bytes, require_recipient

ENCRYPTED_SUFFIX = ".age"
"""Ending of the name of a file that is encrypted to the coordinator."""


class WrongIdentityError(Exception):
    """The identity does not open this file."""


def is_encrypted(content: bytes) -> bool:
    """Whether these first bytes are those of an age file."""
    return content.startswith(AGE_HEADER)


def encrypt(content: bytes, recipient: str) -> bytes:
    """``content`` as an age file that only the owner of ``recipient`` can open."""
    pyrage = package("pyrage")
    require_recipient(recipient)
    encrypted: bytes = pyrage.encrypt(content, [pyrage.x25519.Recipient.from_str(recipient)])
    return encrypted


class Identity:
    """The private half of an age key pair.

    Args:
        path: ``.identity`` file, or one that ``age-keygen`` wrote.
        passphrase: passphrase of that file, if it has one.

    Raises:
        OneRoundError: the file cannot be read, is not an identity, or the passphrase is wrong.
    """

    def __init__(self, path: str | os.PathLike[str], passphrase: str | None = None) -> None:
        pyrage = package("pyrage")
        self.path = Path(path)
        content = read_bytes(path)
        locked = is_encrypted(content)
        try:
            if locked:
                content = pyrage.passphrase.decrypt(content, passphrase or "")
            lines = content.decode().splitlines()
            [line] = [line.strip() for line in lines if line.startswith("AGE-SECRET-KEY-1")]
            self._identity = pyrage.x25519.Identity.from_str(line)
        except (ValueError, pyrage.DecryptError, pyrage.IdentityError) as error:
            raise OneRoundError(
                "the passphrase does not open it." if locked else "not an age identity.",
                file=path,
                remedy="Give the passphrase in ONEROUND_PASSPHRASE, or when asked."
                if locked
                else "Give the .identity file that `oneround keys new` wrote.",
            ) from error

    def decrypt(self, encrypted: BinaryIO, plain: BinaryIO) -> None:
        """Decrypt an age file into another file; little of it is in memory at a time.

        Args:
            encrypted: encrypted file, positioned at its start.
            plain: file to write; its content is at most as long.

        Raises:
            WrongIdentityError: it was encrypted to another key, or is damaged.
        """
        pyrage = package("pyrage")
        try:
            pyrage.decrypt_io(encrypted, plain, [self._identity])
        except (pyrage.DecryptError, OSError) as error:
            if getattr(error, "errno", None) is not None:  # of the disk; damage has no number
                raise
            raise WrongIdentityError(str(error)[:200]) from error
