"""Evaluation that comes back: the numbers that leave a site, and what they say together.

A site measures the global model, and its own client model beside it, on its own images. What
leaves is one small file: counts and metrics, no image, no output for a single image. Where few
images stand behind a number it is left out (``submission.smallest_cell`` of the study).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from oneround import signing
from oneround.data import ImageSet, Splits
from oneround.errors import OneRoundError
from oneround.evaluation import Metrics, evaluate
from oneround.files import sha256, write_json
from oneround.model_file import load_model
from oneround.schema import Count, Name, Sha256, Strict, Text, now
from oneround.study import Study
from oneround.submission import read_submission

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Chosen = Literal["train", "val", "test"]
Split = Literal["auto", "train", "val", "test"]


class Told(Strict):
    """What is told of one model on the images of one site.

    Attributes:
        accuracy, balanced_accuracy, auroc, ece: see :class:`oneround.evaluation.Metrics`.
        recall: by class, of those that are told.
        intervals: 95 % bootstrap intervals.
        confusion: rows are the truth; counts from 1 to below the smallest cell are ``None``.
    """

    accuracy: float = Field(ge=0, le=1)
    balanced_accuracy: float = Field(ge=0, le=1)
    auroc: float | None = Field(ge=0, le=1)
    ece: float = Field(ge=0, le=1)
    recall: dict[Text, float] = Field(max_length=4096)
    intervals: dict[Text, tuple[float, float]] = Field(max_length=16)
    confusion: list[list[Count | None]] = Field(max_length=4096)


class SiteEvaluation(Strict):
    """The content of the file.

    Attributes:
        site: who measured.
        model: SHA-256 of the global model's weights.
        split: which of its images.
        images: how many, those of classes in ``left_out`` not among them.
        class_counts: images by class, of those that are told.
        left_out: classes of which the site has images, but fewer than the smallest cell.
        smallest_cell: smaller counts are not told.
        global_model: ``global`` in the file: the global model.
        own: the site's own client model on the same images, if it was given.
    """

    format: Literal[1] = 1
    study: Name
    study_hash: Sha256
    site: Name
    model: Sha256
    created: str = Field(max_length=40)
    split: Chosen
    images: int = Field(ge=1, le=10**12)
    class_counts: dict[Text, Count] = Field(max_length=4096)
    left_out: tuple[Text, ...] = Field((), max_length=4096)
    smallest_cell: int = Field(ge=1)
    global_model: Told = Field(alias="global")
    own: Told | None = None


def chosen_split(
    splits: Splits, split: Split, data: str | os.PathLike[str]
) -> tuple[Chosen, ImageSet]:
    """The images to evaluate on; auto: the test images, or else the validation images, or all.

    Raises:
        OneRoundError: there are none; it names ``data``.
    """
    order: tuple[Chosen, ...] = ("test", "val", "train") if split == "auto" else (split,)
    for name in order:
        images: ImageSet | None = getattr(splits, name)
        if images is not None and len(images):
            return name, images
    raise OneRoundError(
        f"there is no {split} image.", file=data, remedy="Choose another --split, or add images."
    )


def evaluate_at_site(
    model: str | os.PathLike[str],
    data: ImageSet,
    study: Study,
    site: str,
    *,
    split: Chosen,
    own: str | os.PathLike[str] | None = None,
    fabric: Fabric | None = None,
) -> SiteEvaluation:
    """Measure the global model, and the site's own, on images of the site.

    Args:
        model: ``global.safetensors`` or a RUN folder.
        data: images of the site; those of classes with too few are left out.
        study: says how small a count may be told.
        site: its name.
        split: what is told of which images they are.
        own: the site's submission.
        fabric: device and precision; the CPU by default.

    Raises:
        OneRoundError: a model cannot be read or is of another study, the study does not know the
            site, or no class has enough images.
    """
    study.require_site(site)
    least, counts = study.submission.smallest_cell, data.class_counts()
    enough = [c for c in range(len(study.classes)) if counts[c] >= least]
    told = torch.isin(data.labels, torch.tensor(enough))
    if not told.any():
        raise OneRoundError(
            f"no class has {least} images, the smallest number that the study lets a site tell.",
            remedy="Use more images, or ask the coordinator about submission.smallest_cell.",
        )
    images = data.subset(told.nonzero().flatten())

    def measured(path: str | os.PathLike[str]) -> Told:
        loaded = load_model(path)
        if loaded.task != study.task:
            raise OneRoundError(
                "the model has other classes or images than the study.",
                file=path,
                remedy="Give the global model of this study, and the site's own submission to it.",
            )
        return _told(evaluate(loaded.network, images, study.image, fabric=fabric), least)

    if own is not None and (other := read_submission(own).manifest.site) != site:
        raise OneRoundError(
            f"this is the client model of {other}.",
            file=own,
            remedy=f"Give the submission of {site}, or leave out --own.",
        )
    names = study.classes
    return SiteEvaluation.model_validate(
        {
            "study": study.name,
            "study_hash": study.hash,
            "site": site,
            "model": _weights_sha256(model),
            "created": now().isoformat(),
            "split": split,
            "images": len(images),
            "class_counts": {names[c]: int(counts[c]) for c in enough},
            "left_out": [names[c] for c in range(len(names)) if 0 < counts[c] < least],
            "smallest_cell": least,
            "global": measured(model).model_dump(),
            "own": None if own is None else measured(own).model_dump(),
        }
    )


def write_evaluation(
    path: str | os.PathLike[str],
    content: SiteEvaluation,
    *,
    key: str | os.PathLike[str] | None = None,
    passphrase: str | None = None,
) -> list[Path]:
    """Write the file, and with a key its signature ``FILE.sig``; the paths of what is to be sent.

    Raises:
        OneRoundError: the key cannot be used, or nothing can be written.
    """
    path = Path(path)
    write_json(path, content.model_dump(mode="json", by_alias=True))
    return [path] if key is None else [path, signing.sign_file(path, key, passphrase)]


def _told(metrics: Metrics, least: int) -> Told:
    recall = {name: value for name, value in metrics.recall.items() if value is not None}
    confusion = [[None if 0 < n < least else n for n in row] for row in metrics.confusion]
    kept = metrics.model_dump(include={"accuracy", "balanced_accuracy", "auroc", "ece"})
    return Told(**kept, recall=recall, intervals=metrics.intervals, confusion=confusion)


def _weights_sha256(model: str | os.PathLike[str]) -> str:
    path = Path(model)
    path = path / "global.safetensors" if path.is_dir() else path
    return sha256(path) if path.is_file() else "0" * 64
