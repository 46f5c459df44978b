"""Files that are whole or not there at all."""

from __future__ import annotations

import io
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from oneround.errors import OneRoundError


def write_atomic(path: str | os.PathLike[str], content: bytes, *, durable: bool = True) -> None:
    """Write ``content`` so that ``path`` is never seen half written, even after a power cut.

    Args:
        path: the file.
        content: all of it.
        durable: wait until the disk has it; without, a power cut may leave an empty file.

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
    """Raise before long work, not after it, when ``path`` cannot be written.

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


def save_state(path: str | os.PathLike[str], state: dict[str, object]) -> None:
    """Write tensors, numbers, strings, lists and dicts as one checkpoint, atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`save_state` wrote, on the CPU, whichever device it was on; nothing but
    plain data is ever unpickled.

    Raises:
        OneRoundError: the file is damaged or holds anything else.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise OneRoundError(
            "the checkpoint is damaged.",
            file=path,
            remedy="Delete it and run the same command again; the work before it is kept.",
        ) from error
    return state


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file.

    Raises:
        OneRoundError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OneRoundError(
            f"cannot be read as JSON: {getattr(error, 'strerror', None) or error}.",
            file=path,
            remedy="Check the path, or make the file again with the command that wrote it.",
        ) from error


def write_json(path: str | os.PathLike[str], content: object) -> None:
    """Write JSON that people can read, atomically; NaN is refused."""
    write_atomic(path, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")


def write_figure(path: str | os.PathLike[str], figure: Figure) -> None:
    """Write a matplotlib figure as PNG, atomically."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # drawn as an empty box
        figure.savefig(buffer, format="png", dpi=80)
    write_atomic(path, buffer.getvalue())
