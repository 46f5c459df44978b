"""One-shot federated learning on medical images: one file per hospital, one global model.

The whole way in a dozen lines:

>>> from oneround import Study, aggregate, make_submission, read_splits, read_submissions
>>> study = Study.read("study.toml")                                          # doctest: +SKIP
>>> splits = read_splits("images/", image=study.image, classes=study.classes)  # doctest: +SKIP
>>> make_submission(study, "north", splits, "north.oneround")                 # doctest: +SKIP

and, at the coordinator,

>>> submissions = read_submissions(["north.oneround", "south.oneround"], study)  # doctest: +SKIP
>>> model = aggregate(study, submissions)                                     # doctest: +SKIP
>>> model.evaluate(splits.test).accuracy                                      # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oneround import methods
    from oneround.coordinator.aggregate import aggregate
    from oneround.coordinator.results import Results
    from oneround.data import ImageSet, Splits, read_splits
    from oneround.errors import OneRoundError, Problem
    from oneround.evaluation import Metrics
    from oneround.model_file import Model, load_model
    from oneround.models.registry import register
    from oneround.report import write_report
    from oneround.research.simulation import simulate
    from oneround.runs.callbacks import Callback
    from oneround.site.make_submission import make_submission
    from oneround.site.training import TrainedClient, train_client
    from oneround.study import ArchitectureSpec, ImageSpec, Study, Task, TrainingSpec
    from oneround.submission import (
        Submission,
        check_submission,
        read_submission,
        read_submissions,
        seal_submission,
    )

__all__ = [
    "ArchitectureSpec",
    "Callback",
    "ImageSet",
    "ImageSpec",
    "Metrics",
    "Model",
    "OneRoundError",
    "Problem",
    "Results",
    "Splits",
    "Study",
    "Submission",
    "Task",
    "TrainedClient",
    "TrainingSpec",
    "aggregate",
    "check_submission",
    "load_model",
    "make_submission",
    "methods",
    "read_splits",
    "read_submission",
    "read_submissions",
    "register",
    "seal_submission",
    "simulate",
    "train_client",
    "write_report",
]

_WHERE = {
    "oneround.coordinator.aggregate": ("aggregate",),
    "oneround.coordinator.results": ("Results",),
    "oneround.data": ("ImageSet", "Splits", "read_splits"),
    "oneround.errors": ("OneRoundError", "Problem"),
    "oneround.evaluation": ("Metrics",),
    "oneround.model_file": ("Model", "load_model"),
    "oneround.models.registry": ("register",),
    "oneround.report": ("write_report",),
    "oneround.research.simulation": ("simulate",),
    "oneround.runs.callbacks": ("Callback",),
    "oneround.site.make_submission": ("make_submission",),
    "oneround.site.training": ("TrainedClient", "train_client"),
    "oneround.study": ("ArchitectureSpec", "ImageSpec", "Study", "Task", "TrainingSpec"),
    "oneround.submission": (
        "Submission",
        "check_submission",
        "read_submission",
        "read_submissions",
        "seal_submission",
    ),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}
_MODULES = ("methods", "models")  # so that ``oneround.methods.get`` needs no import of its own

_RENAMED = {"distill": "aggregate", "GlobalModel": "Model", "LoadedModel": "Model"}
"""Names of the version before; they work until the next one."""


def __getattr__(name: str) -> object:
    """A public name, imported when it is first used: ``import oneround`` loads no torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("oneround")
    if name in _RENAMED:
        from oneround.errors import warn_renamed

        warn_renamed(f"oneround.{name}", f"oneround.{_RENAMED[name]}")
        return __getattr__(_RENAMED[name])
    if name in _MODULE_OF:
        found = getattr(importlib.import_module(_MODULE_OF[name]), name)
    elif name in _MODULES:
        found = importlib.import_module(f"oneround.{name}")
    else:
        raise AttributeError(f"module 'oneround' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES, "__version__"})
