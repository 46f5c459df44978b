"""Evaluation of the global model at a site: the numbers that the site sends back.

A site evaluates the global model, and its own client model beside it, on its own images. What
leaves is one small file: counts and metrics, no image, no output for a single image. A number
behind which there are few images is left out (``submission.smallest_cell`` of the study).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from oneround import signing
from oneround.data import ImageSet, Splits, as_image_set
from oneround.data.image_set import Images
from oneround.errors import OneRoundError
from oneround.evaluation import Metrics, compare, measure, predict
from oneround.files import sha256, write_json
from oneround.model_file import load_model
from oneround.schema import Count, FormatOne, Name, Sha256, Share, Strict, Text, Time, now
from oneround.study import Study
from oneround.submission import read_submission

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Chosen = Literal["train", "val", "test"]
"""Split that was evaluated on."""

Split = Literal["auto", "train", "val", "test"]
"""Split that was asked for; see :func:`chosen_split`."""


class ReportedMetrics(Strict):
    """Metrics of one model on the images of one site, as the site reports them.

    Attributes:
        accuracy: share of images classified correctly.
        balanced_accuracy: mean recall over the reported classes.
        auroc: area under the ROC curve; see :class:`oneround.evaluation.Metrics`.
        ece: expected calibration error.
        recall: recall of each reported class.
        intervals: 95 % bootstrap intervals, by metric.
        confusion: number of images, rows the true and columns the predicted class; ``None`` for
            counts from 1 to below the smallest cell.
    """

    accuracy: Share
    balanced_accuracy: Share
    auroc: Share | None
    ece: Share
    recall: dict[Text, Share] = Field(max_length=4096)
    intervals: dict[Text, tuple[Share, Share]] = Field(max_length=16)
    confusion: list[list[Count | None]] = Field(max_length=4096)

    @model_validator(mode="after")
    def _is_a_table(self) -> Self:
        if any(len(row) != len(self.confusion) for row in self.confusion):
            raise ValueError("confusion needs one row and one column for each class")
        if any(low > high for low, high in self.intervals.values()):
            raise ValueError("intervals must not end below their start")
        return self

    def require_images(self, images: int, smallest_cell: int) -> None:
        """Compare the confusion matrix with the number of images and with the accuracy.

        Args:
            images: number of images.
            smallest_cell: smallest count that is reported; ``None`` in the matrix is 1 to below it.

        Raises:
            ValueError: they contradict each other.
        """
        least, most = _bounds([cell for row in self.confusion for cell in row], smallest_cell)
        if not least <= images <= most:
            raise ValueError(f"confusion does not sum to {images} images")
        right = [row[number] for number, row in enumerate(self.confusion)]
        least, most = _bounds(right, smallest_cell)
        if not least <= round(self.accuracy * images) <= most:
            raise ValueError("accuracy is not the share of images on the diagonal of confusion")


def _bounds(cells: Sequence[int | None], smallest_cell: int) -> tuple[int, int]:
    """Smallest and largest sum of cells of which ``None`` are 1 to below ``smallest_cell``."""
    known = sum(cell for cell in cells if cell is not None)
    hidden = sum(cell is None for cell in cells)
    return known + hidden, known + hidden * (smallest_cell - 1)


class ReportedDifference(Strict):
    """The global model minus the site's own, on the same images.

    Attributes:
        accuracy: difference of the accuracies.
        balanced_accuracy: difference of the balanced accuracies.
        intervals: 95 % paired bootstrap intervals of both, by metric.
    """

    accuracy: float = Field(ge=-1, le=1)
    balanced_accuracy: float = Field(ge=-1, le=1)
    intervals: dict[Text, tuple[float, float]] = Field(max_length=2)


class SiteEvaluation(Strict):
    """The content of the file that a site sends back.

    Attributes:
        format: version of the file format.
        study: name of the study.
        study_hash: :attr:`oneround.study.Study.hash` of it.
        site: name of the site.
        model: SHA-256 of the global model's weights.
        created: time of the evaluation, UTC, ISO 8601.
        split: split of the site's images that was evaluated on.
        images: number of images, without those of classes in ``left_out``.
        class_counts: number of images of each reported class.
        left_out: classes of which the site has images, but fewer than ``smallest_cell``.
        smallest_cell: smallest count that the site reports.
        global_model: metrics of the global model; ``global`` in the file.
        own: metrics of the site's own client model on the same images, if it was given.
        difference: the global model minus that model; ``None``: not compared, or the two differ
            in more than none and fewer than ``smallest_cell`` images, which the width of an
            interval would tell.
    """

    format: FormatOne = 1
    study: Name
    study_hash: Sha256
    site: Name
    model: Sha256
    created: Time
    split: Chosen
    images: int = Field(ge=1, le=10**12)
    class_counts: dict[Text, Count] = Field(max_length=4096)
    left_out: tuple[Text, ...] = Field((), max_length=4096)
    smallest_cell: int = Field(ge=1, le=1000)
    global_model: ReportedMetrics = Field(alias="global")
    own: ReportedMetrics | None = None
    difference: ReportedDifference | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if sum(self.class_counts.values()) != self.images:
            raise ValueError(f"class_counts do not sum to {self.images} images")
        if any(count < self.smallest_cell for count in self.class_counts.values()):
            raise ValueError("a count in class_counts is below smallest_cell")
        for metrics in filter(None, (self.global_model, self.own)):
            if strangers := metrics.recall.keys() - self.class_counts.keys():
                raise ValueError(f"recall names {sorted(strangers)[0]!r}, which has no images")
            metrics.require_images(self.images, self.smallest_cell)
        return self


def chosen_split(
    splits: Splits, split: Split, data: str | os.PathLike[str]
) -> tuple[Chosen, ImageSet]:
    """The split to evaluate on, and its images; auto: test, or else val, or else all images.

    Args:
        splits: images of the site.
        split: split that was asked for.
        data: path of the images, for the error.

    Raises:
        OneRoundError: there is no such image.
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
    data: Images,
    study: Study,
    site: str,
    *,
    split: Chosen,
    own: str | os.PathLike[str] | None = None,
    fabric: Fabric | None = None,
) -> SiteEvaluation:
    """Evaluate the global model, and the site's own client model, on images of the site.

    Args:
        model: ``global.safetensors`` or a RUN folder.
        data: images of the site; classes with fewer than ``submission.smallest_cell`` of the
            study are left out.
        study: agreement.
        site: name of the site.
        split: split that ``data`` is, for the report.
        own: the site's submission.
        fabric: device and precision; the CPU by default.

    Raises:
        OneRoundError: a model cannot be read or is of another study, the study does not know the
            site, or no class has enough images.
    """
    study.require_site(site)
    data = as_image_set(data, study.classes)
    least, counts = study.submission.smallest_cell, data.class_counts()
    enough = [c for c in range(len(study.classes)) if counts[c] >= least]
    reported = torch.isin(data.labels, torch.tensor(enough))
    if not reported.any():
        raise OneRoundError(
            f"no class has {least} images, the smallest count that a site reports in this study.",
            remedy="Use more images, or ask the coordinator about submission.smallest_cell.",
        )
    images = data.subset(reported.nonzero().flatten())

    def predicted(path: str | os.PathLike[str]) -> Tensor:
        loaded = load_model(path)
        if loaded.task != study.task:
            raise OneRoundError(
                "the model has other classes or images than the study.",
                file=path,
                remedy="Give the global model of this study, and the site's own submission to it.",
            )
        return predict(loaded.network, images, study.image, fabric=fabric)

    def measured(predictions: Tensor) -> ReportedMetrics:
        patients = images.patients
        metrics = measure(predictions, images.labels, images.classes, patients=patients)
        return _reported(metrics, least)

    if own is not None and (other := read_submission(own).manifest.site) != site:
        raise OneRoundError(
            f"this is the client model of {other}.",
            file=own,
            remedy=f"Give the submission of {site}, or leave out --own.",
        )
    predictions = predicted(model)
    of_own = None if own is None else predicted(own)
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
            "global": measured(predictions).model_dump(),
            "own": None if of_own is None else measured(of_own).model_dump(),
            "difference": None
            if of_own is None
            else _difference(predictions, of_own, images, least),
        }
    )


def write_evaluation(
    path: str | os.PathLike[str],
    content: SiteEvaluation,
    *,
    key: str | os.PathLike[str] | None = None,
    passphrase: str | None = None,
) -> list[Path]:
    """Write the evaluation and, with a key, its signature ``FILE.sig``.

    Args:
        path: file to write.
        content: evaluation of the site.
        key: the site's ``.key`` file; ``None``: not signed.
        passphrase: passphrase of that file.

    Returns:
        The paths of the files to send back.

    Raises:
        OneRoundError: the key cannot be used, or nothing can be written.
    """
    path = Path(path)
    write_json(path, content.model_dump(mode="json", by_alias=True))
    return [path] if key is None else [path, signing.sign_file(path, key, passphrase)]


def _reported(metrics: Metrics, least: int) -> ReportedMetrics:
    """What leaves the site: no ROC curve, no count from 1 to below ``least``."""
    recall = {name: value for name, value in metrics.recall.items() if value is not None}
    confusion = [[None if 0 < n < least else n for n in row] for row in metrics.confusion]
    shares = metrics.model_dump(include={"accuracy", "balanced_accuracy", "auroc", "ece"})
    return ReportedMetrics(
        **shares, recall=recall, intervals=metrics.intervals, confusion=confusion
    )


def _difference(
    predictions: Tensor, of_own: Tensor, images: ImageSet, least: int
) -> dict[str, object] | None:
    """The paired difference, unless 1 to below ``least`` images decide it."""
    found = compare(predictions, of_own, images.labels, patients=images.patients)
    return None if 0 < found.differing < least else found.model_dump(exclude={"differing"})


def _weights_sha256(model: str | os.PathLike[str]) -> str:
    path = Path(model)
    path = path / "global.safetensors" if path.is_dir() else path
    return sha256(path) if path.is_file() else "0" * 64
