"""Files: written whole or not at all, JSON read strictly, checksums."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import platform
import re
import secrets
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from oneround.errors import OneRoundError

log = logging.getLogger(__name__)


ABANDONED_SECONDS = 24 * 3600
"""Seconds after which a part that nobody writes to is removed, whoever began it."""

MOST_DIGITS = 1000
"""Most digits of a whole number in JSON."""

_PART = re.compile(r"\.([0-9a-f]{8})-(\d{1,10})-[0-9a-f]{8}\.part")
_HERE = hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def write_atomic(path: str | os.PathLike[str], content: bytes, *, durable: bool = True) -> None:
    """Write ``content`` so that ``path`` is never seen half written, even after a power cut.

    Args:
        path: file to write; an older one is replaced.
        content: whole content of the file.
        durable: whether to wait until the disk has it; if not, a power cut may leave an empty file.

    Raises:
        OneRoundError: the folder is missing, not writable or full; an older file stays as it was.
    """
    path = Path(path)
    try:
        with hidden_part(path) as file:
            file.write(content)
            settle(file, path, durable=durable)
    except OSError as error:
        raise OneRoundError(
            f"cannot write: {error.strerror or error}.",
            file=path,
            remedy="Make room or choose another folder, then run the same command again.",
        ) from error


@contextmanager
def hidden_part(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """A hidden file beside ``path``, of this process alone, that is to become it.

    It is removed at the end unless :func:`settle` gave it its name. What killed processes have
    left of ``path`` is removed at the start.

    Args:
        path: file that it is to become.
        private: whether its owner alone may read it.

    Raises:
        OSError: it cannot be written.
    """
    remove_abandoned(path.parent, path.name)
    part = path.with_name(part_name(path.name))
    mode = 0o600 if private else 0o666
    file = open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115
    try:
        with file:
            yield file
    finally:
        part.unlink(missing_ok=True)


def settle(file: BinaryIO, path: Path, *, durable: bool = True, replace: bool = True) -> None:
    """Give a hidden part its name: its content is on the disk before, and its name after that.

    Args:
        file: file of :func:`hidden_part`; it is closed.
        path: name that it gets.
        durable: whether to wait for the disk.
        replace: whether a file of this name may be replaced.

    Raises:
        FileExistsError: there is a file of this name, which may not be replaced.
        OSError: the disk is full.
    """
    file.flush()
    if durable:
        os.fsync(file.fileno())
    file.close()
    name_part(Path(file.name), path, replace=replace)
    if durable:
        sync_folder(path.parent)


def name_part(part: Path, path: Path, *, replace: bool) -> None:
    """Rename ``part``; without ``replace``, never over another file.

    Raises:
        FileExistsError: there is one, and ``replace`` is false.
    """
    if replace:
        os.replace(part, path)
        return
    try:
        os.link(part, path)  # fails if there is one, whoever made it and when
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "File exists", str(path)) from None
        os.replace(part, path)
    else:
        part.unlink()


def part_name(name: str) -> str:
    """Hidden name of a file on its way to ``name``: it says which process of which machine."""
    return f".{name}.{_HERE}-{os.getpid()}-{secrets.token_hex(4)}.part"


def is_abandoned(name: str, modified: float | None) -> bool:
    """Whether no process works on a hidden part any more: the one that began it has ended.

    Args:
        name: name of the part, as :func:`part_name` gives it or an earlier version did.
        modified: time of its last change in seconds since 1970; ``None``: it is not known.
    """
    begun = _PART.search(name)
    if begun and begun[1] == _HERE and os.name != "nt":
        return not _is_alive(int(begun[2]))
    return modified is not None and time.time() - modified > ABANDONED_SECONDS


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def remove_abandoned(folder: Path, of: str = "") -> None:
    """Remove hidden parts on their way to the file ``of``, or to any, that nobody works on."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if is_part(entry.name, of):
                with suppress(OSError):
                    if is_abandoned(entry.name, entry.stat(follow_symlinks=False).st_mtime):
                        os.unlink(entry.path)


def is_part(name: str, of: str = "") -> bool:
    """Whether this is the name of a hidden part on its way to the file ``of``, or to any."""
    if of:
        return name.startswith(f".{of}.") and name.endswith(".part")
    return name.startswith(".") and bool(_PART.search(name))


@contextmanager
def exclusive(folder: Path, seconds: float = 60) -> Iterator[None]:
    """One process at a time decides which files of ``folder`` are replaced; the others wait.

    Args:
        folder: folder that is locked; a process that is killed leaves no lock.
        seconds: seconds to wait.

    Raises:
        OneRoundError: another process has not finished by then.
        OSError: there is no such folder.
    """
    if os.name == "nt":  # where a folder cannot be locked
        with FileLock(folder / ".oneround-files.lock", timeout=seconds):
            yield
        return
    until = time.monotonic() + seconds
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        while not _locked(descriptor):
            if time.monotonic() > until:
                raise OneRoundError(
                    "another process changes files in this folder.",
                    file=folder,
                    remedy="Wait until it is done, then run the same command again.",
                )
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Whether the folder is this process's now; also where a network share knows no locks."""
    import fcntl  # POSIX alone has it

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.debug("no locks here: %s", error)
    return True


def require_folder(path: str | os.PathLike[str]) -> None:
    """Refuse a path that cannot be written: before long work, not after it.

    Raises:
        OneRoundError: its folder is missing or not writable, or ``path`` is a folder.
    """
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        reason = "is a folder" if path.is_dir() else "its folder is missing or not writable"
        raise OneRoundError(
            f"cannot write: {reason}.",
            file=path,
            remedy="Choose another --out, or make the folder.",
        )


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file, as :func:`parse_json` reads it.

    Raises:
        OneRoundError: the file is missing, or is not JSON of that kind.
    """
    try:
        return parse_json(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise OneRoundError(
            f"cannot be read as JSON: {getattr(error, 'strerror', None) or error}.",
            file=path,
            remedy="Check the path, or make the file again with the command that wrote it.",
        ) from error


def write_json(path: str | os.PathLike[str], content: object) -> None:
    """Write JSON that people can read, atomically.

    Raises:
        OneRoundError: as for :func:`write_atomic`.
        ValueError: ``content`` has a NaN or infinity.
    """
    write_atomic(path, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")


def parse_json(content: bytes) -> object:
    """The content of JSON, without what readers may understand differently.

    Raises:
        ValueError: it is not JSON in UTF-8, is nested too deeply, or has NaN, infinity, a number as
            large as 1e999, or a repeated key.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(pairs) != len(dict(pairs)):
            raise ValueError("a key is repeated")
        return dict(pairs)

    def finite(number: str) -> float:
        if not math.isfinite(float(number)):
            raise ValueError(f"{number[:20]} is not a finite number")
        return float(number)

    def whole(number: str) -> int:
        if len(number) > MOST_DIGITS:
            raise ValueError(f"{number[:20]}… has {len(number)} digits")
        return int(number)

    try:
        return json.loads(
            content.decode("utf-8"),
            object_pairs_hook=unique,
            parse_float=finite,
            parse_int=whole,
            parse_constant=finite,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_toml(text: str) -> dict[str, Any]:
    """The content of TOML.

    Raises:
        ValueError: it is not TOML, is nested too deeply, or has a number of thousands of digits.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def sha256(content: bytes | Path) -> str:
    """Hexadecimal SHA-256 of bytes, or of the file at a path, which is read in parts.

    Raises:
        OneRoundError: the file cannot be read.
    """
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    try:
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise OneRoundError(
            f"cannot be read: {error.strerror or error}.", file=content, remedy="Check the path."
        ) from error


def sync_folder(path: Path) -> None:
    """Wait until the disk has the names of the files in a folder; does nothing on Windows."""
    if os.name == "nt":
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:  # some network shares have no such thing
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(folder)
