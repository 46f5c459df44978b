"""The report of a run, as a self-contained HTML page, and the model card of its global model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oneround.report.model_card import write_model_card
    from oneround.report.page import write_report

__all__ = ["write_model_card", "write_report"]

_WHERE = {"write_model_card": "model_card", "write_report": "page"}


def __getattr__(name: str) -> object:
    """Imported when it is first used: the number formats alone need no torch."""
    if name not in _WHERE:
        raise AttributeError(f"module 'oneround.report' has no attribute {name!r}")
    return getattr(import_module(f"oneround.report.{_WHERE[name]}"), name)
