"""One-shot federated learning on medical images: one file per hospital, one global model.

The whole way in a dozen lines:

>>> from oneround import Study, distill, evaluate, read_splits, read_submissions, train_client
>>> study = Study.read("study.toml")                                          # doctest: +SKIP
>>> splits = read_splits("images/", image=study.image, classes=study.classes)  # doctest: +SKIP
>>> client = train_client(study, "north", splits.train, splits.val)           # doctest: +SKIP
>>> client.write("north.oneround", study)                                     # doctest: +SKIP

and, at the coordinator,

>>> submissions = read_submissions(["north.oneround", "south.oneround"], study)  # doctest: +SKIP
>>> made = distill(study, submissions, out="run")                            # doctest: +SKIP
>>> evaluate(made.model, splits.test, study.image).accuracy                   # doctest: +SKIP
"""

from importlib.metadata import version

from oneround.coordinator.aggregate import distill
from oneround.coordinator.results import Results
from oneround.data import ImageSet, Splits, in_memory, read_splits
from oneround.errors import OneRoundError, Problem
from oneround.evaluation import Metrics, evaluate, predict
from oneround.methods import GlobalModel
from oneround.model_file import LoadedModel, load_model
from oneround.models.ensemble import Client, Ensemble
from oneround.models.registry import register
from oneround.report import write_report
from oneround.research.simulation import simulate
from oneround.site.training import TrainedClient, train_client
from oneround.study import ArchitectureSpec, ImageSpec, Study, TrainingSpec
from oneround.submission import (
    Submission,
    check_submission,
    read_submission,
    read_submissions,
    seal_submission,
    write_submission,
)

__version__ = version("oneround")

__all__ = [
    "ArchitectureSpec",
    "Client",
    "Ensemble",
    "GlobalModel",
    "ImageSet",
    "ImageSpec",
    "LoadedModel",
    "Metrics",
    "OneRoundError",
    "Problem",
    "Results",
    "Splits",
    "Study",
    "Submission",
    "TrainedClient",
    "TrainingSpec",
    "check_submission",
    "distill",
    "evaluate",
    "in_memory",
    "load_model",
    "predict",
    "read_splits",
    "read_submission",
    "read_submissions",
    "register",
    "seal_submission",
    "simulate",
    "train_client",
    "write_report",
    "write_submission",
]
