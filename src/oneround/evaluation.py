"""Evaluation of a model on a data set: predictions, and metrics with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from oneround.data.image_set import ImageSet, batches
from oneround.errors import OneRoundError
from oneround.schema import Strict
from oneround.study import ImageSpec

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_ROC_POINTS = 50
_WEIGHTS_AT_ONCE = 2**22  # of the bootstrap: 16 MiB


class Metrics(Strict):
    """Metrics of one model on one data set.

    Attributes:
        images: number of images.
        accuracy: share of images classified correctly, in [0, 1] like all shares here.
        balanced_accuracy: mean recall over the classes that are present.
        auroc: area under the ROC curve, one class against the rest, mean over the classes with
            positives and negatives; ``None`` when there are none.
        ece: expected calibration error of the top class, 15 bins of equal width.
        recall: recall of each class; ``None`` where the class is absent.
        intervals: 95 % percentile bootstrap intervals of ``accuracy``, ``balanced_accuracy`` and
            ``auroc``.
        confusion: number of images, rows the true and columns the predicted class.
        roc: ROC curve of each class, at most 50 points (false positive rate, true positive rate).
    """

    images: int
    accuracy: float
    balanced_accuracy: float
    auroc: float | None
    ece: float
    recall: dict[str, float | None]
    intervals: dict[str, tuple[float, float]]
    confusion: list[list[int]]
    roc: dict[str, list[tuple[float, float]]]


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
    return measure(probabilities, data.labels, data.classes, resamples=resamples, seed=seed)


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
    resamples: int = 500,
    seed: int = 0,
) -> Metrics:
    """Metrics of predictions.

    Args:
        probabilities: predictions, (N, classes) in [0, 1], rows sum to one.
        labels: true classes, (N,) ``int64``, indices into ``classes``.
        classes: class names in the order of the outputs.
        resamples: number of bootstrap samples behind the intervals.
        seed: seed of the bootstrap.

    Raises:
        OneRoundError: N is 0, or a probability is not finite.
        ValueError: ``probabilities`` and ``labels`` are of different shapes.
    """
    from torchmetrics.functional import classification  # takes seconds to import

    if probabilities.shape != (len(labels), len(classes)):
        raise ValueError("probabilities must be (N, classes), one row for each label")
    if not len(labels):
        raise _no_images()
    if not probabilities.isfinite().all():
        raise OneRoundError(
            "the outputs of the model are not finite numbers.",
            remedy="Its weights are damaged or its training diverged: train it again, "
            "with a lower learning rate.",
        )
    probabilities, labels = probabilities.float().cpu(), labels.cpu()
    confusion = classification.multiclass_confusion_matrix(
        probabilities, labels, num_classes=len(classes)
    )
    counts, hits = confusion.sum(dim=1), confusion.diag()
    recall = hits / counts  # NaN where a class is absent
    ranked = [c for c in range(len(classes)) if 0 < counts[c] < len(labels)]
    auroc = classification.binary_auroc
    areas = [auroc(probabilities[:, c], (labels == c).long()) for c in ranked]
    ece = classification.multiclass_calibration_error(probabilities, labels, len(classes), 15)
    return Metrics(
        images=len(labels),
        accuracy=float(hits.sum() / len(labels)),
        balanced_accuracy=float(recall.nanmean()),
        auroc=float(torch.stack(areas).mean()) if areas else None,
        ece=float(ece),
        recall={name: float(recall[c]) if counts[c] else None for c, name in enumerate(classes)},
        intervals=_intervals(probabilities, labels, ranked, resamples, seed),
        confusion=confusion.tolist(),
        roc={classes[c]: _roc(probabilities[:, c], labels == c) for c in ranked},
    )


def _roc(scores: Tensor, positive: Tensor) -> list[tuple[float, float]]:
    """The ROC curve, thinned to points that lie evenly along it."""
    from torchmetrics.functional.classification import binary_roc

    false, true, _ = binary_roc(scores, positive.long())
    way = (false + true) / 2  # from 0 to 1, never falling
    kept = torch.searchsorted(way, torch.linspace(0, 1, _ROC_POINTS)).clamp(max=len(way) - 1)
    indices = sorted(set(kept.tolist()))
    return [(round(float(false[i]), 4), round(float(true[i]), 4)) for i in indices]


def _intervals(
    probabilities: Tensor, labels: Tensor, ranked: list[int], resamples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """95 % percentile bootstrap over images (Efron and Tibshirani, 1993, chapter 13).

    A resample is a column of weights, how often each image was sampled, so that all
    resamples are measured together.
    """
    generator = torch.Generator().manual_seed(seed)
    images = len(labels)
    truth = one_hot(labels, probabilities.shape[1]).float()
    hit = truth * (probabilities.argmax(dim=1) == labels).float()[:, None]
    columns = max(1, _WEIGHTS_AT_ONCE // images)
    samples: dict[str, list[Tensor]] = {"accuracy": [], "balanced_accuracy": [], "auroc": []}
    for start in range(0, resamples, columns):
        chosen = torch.randint(
            images, (images, min(columns, resamples - start)), generator=generator
        )
        weights = torch.zeros(chosen.shape).scatter_add_(0, chosen, torch.ones(chosen.shape))
        hits = hit.T @ weights  # (classes, resamples)
        samples["accuracy"].append(hits.sum(dim=0) / images)
        samples["balanced_accuracy"].append((hits / (truth.T @ weights)).nanmean(dim=0))
        if ranked:
            areas = [_auroc(probabilities[:, c], labels == c, weights) for c in ranked]
            samples["auroc"].append(torch.stack(areas).nanmean(dim=0))
    ends = torch.tensor([0.025, 0.975])
    return {
        name: (float(low), float(high))
        for name, parts in samples.items()
        if parts
        for low, high in [torch.cat(parts).nanquantile(ends)]
    }


def _auroc(scores: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    """AUROC for every column of ``weights``: the probability that a positive outranks a negative.

    Args:
        scores: (N,).
        positive: (N,) ``bool``.
        weights: (N, R).

    Returns:
        (R,); a tie counts half; NaN where a column has no positive or no negative.
    """
    negatives, order = scores[~positive].sort()
    below = nn.functional.pad(weights[~positive][order].cumsum(dim=0), (0, 0, 1, 0))
    lower = below[torch.searchsorted(negatives, scores[positive])]
    upper = below[torch.searchsorted(negatives, scores[positive], right=True)]
    won = (weights[positive] * (lower + upper) / 2).sum(dim=0)
    return won / (weights[positive].sum(dim=0) * below[-1])


def _require_images(data: ImageSet, image: ImageSpec) -> None:
    if not len(data):
        raise _no_images()
    if data.shape != image.shape:
        raise OneRoundError(
            f"the images are {data.shape}, the study says {image.shape} (channels, height, width).",
            remedy="Read them with the image size and channels of the study.",
        )


def _no_images() -> OneRoundError:
    return OneRoundError("there is no image to evaluate on.", remedy="Give at least one image.")
