"""Files: written whole or not at all, JSON read strictly, checksums."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from oneround.errors import OneRoundError


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
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=".part", delete=False
        ) as file:
            temporary = file.name
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise OneRoundError(
            f"cannot write: {error.strerror or error}.",
            file=path,
            remedy="Make room or choose another folder, then run the same command again.",
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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

    try:
        return json.loads(
            content.decode("utf-8"),
            object_pairs_hook=unique,
            parse_float=finite,
            parse_constant=finite,
        )
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
    finally:
        os.close(folder)
