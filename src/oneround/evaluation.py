"""Evaluation of a model on a data set: predictions, and metrics with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from oneround import bootstrap
from oneround.bootstrap import CLASS_RATES
from oneround.data.image_set import ImageSet, batches
from oneround.errors import OneRoundError
from oneround.schema import Strict
from oneround.study import ImageSpec

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Interval = tuple[float, float]

_BINS = 15  # of confidence
_WITH_INTERVAL = ("accuracy", "balanced_accuracy", "auroc")
_ROC_POINTS = 50


class Bin(Strict):
    """The images whose top class has a probability within one bin.

    Attributes:
        confidence: mean probability of the top class.
        accuracy: share of these images classified correctly.
        images: number of images.
    """

    confidence: float
    accuracy: float
    images: int


class Comparison(Strict):
    """A model minus another one on the same images.

    Attributes:
        accuracy: difference of the accuracies, in [-1, 1].
        balanced_accuracy: difference of the balanced accuracies.
        differing: number of images that exactly one of the two classifies correctly.
        intervals: 95 % intervals of both differences, by a bootstrap in which both models are
            measured on the same resampled images. Where ``differing`` is 0, they go as far as
            Wilson's upper limit of the share of images that differ.
    """

    accuracy: float
    balanced_accuracy: float
    differing: int
    intervals: dict[str, Interval]


class Metrics(Strict):
    """Metrics of one model on one data set.

    Attributes:
        images: number of images.
        accuracy: share of images classified correctly, in [0, 1] like all shares here.
        balanced_accuracy: mean recall over the classes that are present.
        auroc: area under the ROC curve, one class against the rest, mean over the classes with
            positives and negatives; ``None`` when there are none.
        ece: expected calibration error of the top class, 15 bins of equal width.
        recall: recall of each class, which medicine calls sensitivity; ``None`` where the class is
            absent.
        specificity: share of the images of other classes that are not taken for the class;
            ``None`` where there are none.
        ppv: positive predictive value of each class: share of the images taken for it that are of
            it; ``None`` where there are none. Like ``npv``, it holds for this prevalence alone.
        npv: negative predictive value of each class: share of the images not taken for it that are
            not of it; ``None`` where there are none.
        prevalence: share of the images that are of the class.
        intervals: 95 % intervals of ``accuracy``, ``balanced_accuracy`` and ``auroc``: percentile
            bootstrap; where all images are hits, or none is, Wilson's, since a bootstrap has no
            width there.
        class_intervals: the same by :data:`oneround.bootstrap.CLASS_RATES` and class, where there
            is a value.
        patients: number of patients, if they are known: the intervals are then over patients
            instead of images.
        confusion: number of images, rows the true and columns the predicted class.
        roc: ROC curve of each class, at most 50 points (false positive rate, true positive rate).
        reliability: the bins of ``ece`` that contain images, by rising confidence.
        difference: the global model minus this one, where both were measured on the same images.
    """

    images: int
    accuracy: float
    balanced_accuracy: float
    auroc: float | None
    ece: float
    recall: dict[str, float | None]
    specificity: dict[str, float | None] = Field({})
    ppv: dict[str, float | None] = Field({})
    npv: dict[str, float | None] = Field({})
    prevalence: dict[str, float | None] = Field({})
    intervals: dict[str, Interval]
    class_intervals: dict[str, dict[str, Interval]] = Field({})
    patients: int | None = None
    confusion: list[list[int]]
    roc: dict[str, list[tuple[float, float]]]
    reliability: list[Bin] = Field([])
    difference: Comparison | None = None


def evaluate(
    model: nn.Module,
    data: ImageSet,
    image: ImageSpec,
    *,
    batch_size: int = 256,
    fabric: Fabric | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> Metrics:
    """Metrics of a model on labeled images: :func:`predict`, then :func:`measure`.

    Arguments as for these two.

    Raises:
        OneRoundError: no images, images of another shape than ``image``, or outputs not finite.
    """
    probabilities = predict(model, data, image, batch_size=batch_size, fabric=fabric)
    return measure(
        probabilities,
        data.labels,
        data.classes,
        patients=data.patients,
        resamples=resamples,
        seed=seed,
    )


@torch.no_grad()
def predict(
    model: nn.Module,
    data: ImageSet,
    image: ImageSpec,
    *,
    batch_size: int = 256,
    fabric: Fabric | None = None,
) -> Tensor:
    """Class probabilities of ``model`` in eval mode, (N, classes) ``float32`` on the CPU.

    Args:
        model: network from normalized images (B, C, H, W) to logits or log-probabilities
            (B, classes). Every module is left in the mode (training or eval) that it came in.
        data: N images.
        image: shape and normalization of the network's input.
        batch_size: number of images in a batch.
        fabric: device, to which the model moves, and precision; ``None``: where the model is.

    Raises:
        OneRoundError: there are no images, or their shape is not that of ``image``.
    """
    _require_images(data, image)
    if fabric is None:
        device = next(chain(model.parameters(), model.buffers()), torch.empty(0)).device
    else:
        device = fabric.device
        fabric.to_device(model)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with nullcontext() if fabric is None else fabric.autocast():
            outputs = [
                model(image.normalize(data.pixels(batch).to(device))).float().cpu()
                for batch in batches(len(data), batch_size)
            ]
    finally:
        for module, training in modes:
            module.training = training
    return torch.cat(outputs).softmax(dim=1)


def measure(
    probabilities: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    *,
    patients: Tensor | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> Metrics:
    """Metrics of predictions.

    Args:
        probabilities: predictions, (N, classes) in [0, 1], rows sum to one.
        labels: true classes, (N,) ``int64``, indices into ``classes``.
        classes: class names in the order of the outputs.
        patients: (N,) ``int64``, equal for images of one patient; ``None``: every image is
            sampled on its own.
        resamples: number of bootstrap samples behind the intervals; 0: no intervals.
        seed: seed of the bootstrap.

    Raises:
        OneRoundError: N is 0, or a probability is not finite.
        ValueError: ``probabilities``, ``labels`` and ``patients`` are of different shapes.
    """
    from torchmetrics.functional import classification  # takes seconds to import

    if probabilities.shape != (len(labels), len(classes)):
        raise ValueError("probabilities must be (N, classes), one row for each label")
    _require_predictions(probabilities)
    probabilities, labels = probabilities.float().cpu(), labels.cpu()
    groups = bootstrap.groups_of(labels, patients)
    sums = bootstrap.summed(bootstrap.outcomes_of(probabilities, labels), groups)
    values = bootstrap.shares(sums.sum(dim=0))
    rates = {rate: _by_class(values[rate], classes) for rate in CLASS_RATES}
    counts = labels.bincount(minlength=len(classes))
    ranked = [c for c in range(len(classes)) if 0 < counts[c] < len(labels)]
    auroc = classification.binary_auroc
    areas = torch.tensor([auroc(probabilities[:, c], (labels == c).long()) for c in ranked])
    ece = classification.multiclass_calibration_error(probabilities, labels, len(classes), _BINS)
    confusion = classification.multiclass_confusion_matrix(probabilities, labels, len(classes))
    intervals = bootstrap.intervals_of(sums, resamples, seed) if resamples else {}
    if ranked and resamples:
        drawn = bootstrap.areas(probabilities, labels, ranked, groups, resamples, seed)
        intervals["auroc"] = bootstrap.percentiles(drawn)
        if ((areas == 0) | (areas == 1)).all():
            intervals["auroc"] = bootstrap.where_all_agree(areas, labels, ranked, groups)
    return Metrics(
        images=len(labels),
        accuracy=float(values["accuracy"]),
        balanced_accuracy=float(values["balanced_accuracy"]),
        auroc=float(areas.mean()) if ranked else None,
        ece=float(ece),
        recall=rates["recall"],
        specificity=rates["specificity"],
        ppv=rates["ppv"],
        npv=rates["npv"],
        prevalence=rates["prevalence"],
        intervals={name: _ends(intervals[name]) for name in _WITH_INTERVAL if name in intervals},
        class_intervals={
            rate: {
                name: _ends(ends)
                for name, ends in zip(classes, intervals[rate], strict=True)
                if ends.isfinite().all()
            }
            for rate in CLASS_RATES
            if rate in intervals
        },
        patients=None if patients is None else len(sums),
        confusion=confusion.tolist(),
        roc={classes[c]: _roc(probabilities[:, c], labels == c) for c in ranked},
        reliability=_reliability(probabilities, labels),
    )


def compare(
    probabilities: Tensor,
    other: Tensor,
    labels: Tensor,
    *,
    patients: Tensor | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> Comparison:
    """The first model minus the other, both on the same images.

    Args:
        probabilities: predictions of the first model, (N, classes).
        other: predictions of the other model, (N, classes).
        labels: as in :func:`measure`, like all that follows.
        patients: as there.
        resamples: number of bootstrap samples, at least 1.
        seed: seed of the bootstrap.

    Raises:
        OneRoundError: N is 0, or a probability is not finite.
    """
    for predictions in (probabilities, other):
        _require_predictions(predictions)
    groups, labels = bootstrap.groups_of(labels, patients), labels.cpu()
    outcomes = [bootstrap.outcomes_of(p.float().cpu(), labels) for p in (probabilities, other)]
    sums = [bootstrap.summed(outcome, groups) for outcome in outcomes]
    first, second = (bootstrap.shares(one.sum(dim=0)) for one in sums)
    drawn, drawn_other = (bootstrap.samples(one, resamples, seed) for one in sums)
    differing = int((outcomes[0][:, 2] != outcomes[1][:, 2]).any(dim=1).sum())
    names = ("accuracy", "balanced_accuracy")
    intervals = {name: bootstrap.percentiles(drawn[name] - drawn_other[name]) for name in names}
    if not differing:  # nor do they in any resample
        of_class = (sums[0][:, 0] > 0).sum(dim=0)
        most = bootstrap.most_of_none(of_class[of_class > 0]).mean()
        intervals["balanced_accuracy"] = torch.stack([-most, most])
        most = bootstrap.most_of_none(torch.tensor(len(sums[0])))
        intervals["accuracy"] = torch.stack([-most, most])
    return Comparison(
        accuracy=float(first["accuracy"] - second["accuracy"]),
        balanced_accuracy=float(first["balanced_accuracy"] - second["balanced_accuracy"]),
        differing=differing,
        intervals={name: _ends(ends) for name, ends in intervals.items()},
    )


def _ends(interval: Tensor) -> Interval:
    low, high = interval.tolist()
    return low, high


def _by_class(values: Tensor, classes: Sequence[str]) -> dict[str, float | None]:
    """Value of each class; ``None`` for NaN."""
    return {
        name: None if value != value else value
        for name, value in zip(classes, values.tolist(), strict=True)
    }


def _roc(scores: Tensor, positive: Tensor) -> list[tuple[float, float]]:
    """The ROC curve, thinned to points that lie evenly along it."""
    from torchmetrics.functional.classification import binary_roc

    false, true, _ = binary_roc(scores, positive.long())
    way = (false + true) / 2  # from 0 to 1, never falling
    kept = torch.searchsorted(way, torch.linspace(0, 1, _ROC_POINTS)).clamp(max=len(way) - 1)
    indices = sorted(set(kept.tolist()))
    return [(round(float(false[i]), 4), round(float(true[i]), 4)) for i in indices]


def _reliability(probabilities: Tensor, labels: Tensor) -> list[Bin]:
    """The bins of the expected calibration error (Guo et al., ICML 2017) that contain images."""
    confidence, chosen = probabilities.max(dim=1)
    hit = (chosen == labels).float()
    number = (torch.bucketize(confidence, torch.linspace(0, 1, _BINS + 1)) - 1).clamp(0, _BINS - 1)
    inside = [number == index for index in sorted(set(number.tolist()))]
    return [
        Bin(
            confidence=float(confidence[one].mean()),
            accuracy=float(hit[one].mean()),
            images=int(one.sum()),
        )
        for one in inside
    ]


def _require_images(data: ImageSet, image: ImageSpec) -> None:
    if not len(data):
        raise _no_images()
    if data.shape != image.shape:
        raise OneRoundError(
            f"the images are {data.shape}, the study says {image.shape} (channels, height, width).",
            remedy="Read them with the image size and channels of the study.",
        )


def _require_predictions(probabilities: Tensor) -> None:
    if not len(probabilities):
        raise _no_images()
    if not probabilities.isfinite().all():
        raise OneRoundError(
            "the outputs of the model are not finite numbers.",
            remedy="Its weights are damaged or its training diverged: train it again, "
            "with a lower learning rate.",
        )


def _no_images() -> OneRoundError:
    return OneRoundError("there is no image to evaluate on.", remedy="Give at least one image.")
