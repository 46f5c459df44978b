"""Checkpoints: tensors and plain data in one file."""

from __future__ import annotations

import io
import os
from typing import Any

import torch

from oneround.errors import OneRoundError
from oneround.files import write_atomic


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
