"""What the messages hold: files as bytes, and short answers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel

from oneround.federation.site import Fact

SUBMISSION, GLOBAL = "submission", "global"
"""FLARE's tasks."""


def message(facts: Mapping[str, Fact], files: Mapping[str, bytes]) -> FLModel:
    """A message; the bytes of a file travel as an array."""
    params = {name: np.frombuffer(data, np.uint8) for name, data in files.items()}
    return FLModel(params=params, meta=dict(facts))


def facts_of(model: FLModel) -> dict[str, Fact]:
    """The short answers in a message from anyone; those of other kinds are passed over."""
    return {name: fact for name, fact in model.meta.items() if isinstance(fact, Fact)}


def files_of(model: FLModel) -> dict[str, bytes]:
    """The files in a message from anyone, by name; what is none is passed over."""
    params = model.params if isinstance(model.params, dict) else {}
    arrays = {name: part for name, part in params.items() if isinstance(part, np.ndarray)}
    return {str(name): part.tobytes() for name, part in arrays.items() if part.dtype == np.uint8}
