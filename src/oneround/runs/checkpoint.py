"""Checkpoints: tensors and plain data in one file."""

from __future__ import annotations

import io
import os
from typing import Any

import torch

from oneround.errors import OneRoundError
from oneround.files import write_atomic


def save_state(path: str | os.PathLike[str], state: dict[str, object]) -> None:
    """Write a checkpoint of tensors, numbers, strings, lists and dicts, atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint of :func:`save_state`, with all tensors on the CPU.

    Only tensors and plain data are unpickled.

    Raises:
        OneRoundError: the file is damaged or holds anything else.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(type(state))
    except Exception as error:  # torch raises many kinds for a damaged file
        raise damaged(path) from error
    return state


def damaged(path: str | os.PathLike[str]) -> OneRoundError:
    """The error of a checkpoint that does not hold what was written."""
    return OneRoundError(
        "the checkpoint is damaged.",
        file=path,
        remedy="Delete it and run the same command again; earlier stages are kept.",
    )
