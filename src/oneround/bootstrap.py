"""Shares of hits for each class, and their intervals by a bootstrap over images or patients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

CLASS_RATES = ("recall", "specificity", "ppv", "npv", "prevalence")
"""Shares that there are for each class, one against the rest."""

_WEIGHTS_AT_ONCE = 2**22  # of the bootstrap: 16 MiB
_Z2 = 1.959964**2  # of a 95 % interval


def groups_of(labels: Tensor, patients: Tensor | None) -> Tensor:
    """What is resampled together: (N,) ``int64``, a number from 0 on for each patient or image."""
    if patients is None:
        return torch.arange(len(labels))
    if patients.shape != labels.shape:
        raise ValueError("patients must be (N,), one for each image")
    _, groups = torch.unique(patients, return_inverse=True)
    return torch.as_tensor(groups).cpu()


def outcomes_of(probabilities: Tensor, labels: Tensor) -> Tensor:
    """(N, 3, classes) in {0, 1}: the image is of the class, is taken for it, and both."""
    truth = one_hot(labels, probabilities.shape[1])
    chosen = one_hot(probabilities.argmax(dim=1), probabilities.shape[1])
    return torch.stack([truth, chosen, truth * chosen], dim=1).float()


def summed(outcomes: Tensor, groups: Tensor) -> Tensor:
    """Sums of ``outcomes`` within each group, (groups, 3, classes)."""
    sums = torch.zeros(int(groups.max()) + 1, *outcomes.shape[1:])
    return sums.index_add_(0, groups, outcomes)


def _numbers(sums: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Hits and cases, each (…, classes), that every one of :data:`CLASS_RATES` is the ratio of."""
    truth, chosen, hit = sums.unbind(dim=-2)
    images = truth.sum(dim=-1, keepdim=True)
    neither = images - truth - chosen + hit
    return {
        "recall": (hit, truth),
        "specificity": (neither, images - truth),
        "ppv": (hit, chosen),
        "npv": (neither, images - chosen),
        "prevalence": (truth, images.expand_as(truth)),
    }


def shares(sums: Tensor) -> dict[str, Tensor]:
    """All shares that follow from sums (…, 3, classes): (…, classes) for each class, NaN where
    there is no case, and (…) for accuracy and balanced accuracy."""
    found = {name: hits / cases for name, (hits, cases) in _numbers(sums).items()}
    truth, _, hit = sums.unbind(dim=-2)
    found["accuracy"] = hit.sum(dim=-1) / truth.sum(dim=-1)
    found["balanced_accuracy"] = found["recall"].nanmean(dim=-1)
    return found


def _weights(groups: int, images: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """How often each group is in each resample, (groups, R) in blocks: bootstrap over groups
    (Efron and Tibshirani, 1993, chapters 8 and 13; Field and Welsh, 2007, for clusters).

    All resamples of a block are measured together; equal arguments give equal weights.
    """
    generator = torch.Generator().manual_seed(seed)
    columns = max(1, _WEIGHTS_AT_ONCE // images)
    for start in range(0, resamples, columns):
        shape = (groups, min(columns, resamples - start))
        chosen = torch.randint(groups, shape, generator=generator)
        yield torch.zeros(shape).scatter_add_(0, chosen, torch.ones(shape))


def samples(sums: Tensor, resamples: int, seed: int) -> dict[str, Tensor]:
    """:func:`shares` of each resample, (resamples, …)."""
    images = int(sums[:, 0].sum())
    blocks = [
        shares((weights.T @ sums.flatten(1)).reshape(-1, *sums.shape[1:]))
        for weights in _weights(len(sums), images, resamples, seed)
    ]
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}


def areas(
    probabilities: Tensor,
    labels: Tensor,
    ranked: list[int],
    groups: Tensor,
    resamples: int,
    seed: int,
) -> Tensor:
    """AUROC of each resample, mean over the ``ranked`` classes, (resamples,)."""
    blocks = []
    for weights in _weights(int(groups.max()) + 1, len(labels), resamples, seed):
        of_image = weights[groups]
        found = [weighted_auroc(probabilities[:, c], labels == c, of_image) for c in ranked]
        blocks.append(torch.stack(found).nanmean(dim=0))
    return torch.cat(blocks)


def where_all_agree(areas: Tensor, labels: Tensor, ranked: list[int], groups: Tensor) -> Tensor:
    """95 % interval of the mean of AUROCs, (2,), of which each is 0 or 1, and so in every resample.

    As many pairs of a positive and a negative as there are groups of the rarer kind share no
    group, so they are independent trials of which of the two ranks higher: Wilson's interval.

    Args:
        areas: AUROC of each of the ``ranked`` classes, (len(ranked),) in {0, 1}.
        labels: (N,).
        ranked: classes with positives and negatives.
        groups: see :func:`groups_of`.
    """
    pairs = torch.tensor(
        [
            min(len(set(groups[part].tolist())) for part in (labels == c, labels != c))
            for c in ranked
        ]
    )
    return _with_width(areas.new_zeros(len(ranked), 2), areas, pairs).mean(dim=0)


def percentiles(samples: Tensor) -> Tensor:
    """95 % interval of (resamples, …) without NaN, (…, 2)."""
    return samples.nanquantile(torch.tensor([0.025, 0.975]), dim=0).movedim(0, -1)


def intervals_of(sums: Tensor, resamples: int, seed: int) -> dict[str, Tensor]:
    """95 % intervals of all :func:`shares`, (2,) or (classes, 2), NaN where there is no case.

    A percentile bootstrap; where a share is 0 or 1, and so in every resample, Wilson's interval
    (JASA 1927), whose sample size is the number of groups with a case. That is cautious for
    patients with several images each.

    Args:
        sums: (groups, 3, classes).
        resamples: number of bootstrap samples, at least 1.
        seed: seed of the bootstrap.
    """
    values = shares(sums.sum(dim=0))
    found = {name: percentiles(drawn) for name, drawn in samples(sums, resamples, seed).items()}
    for name, (_, cases) in _numbers(sums).items():
        found[name] = _with_width(found[name], values[name], (cases > 0).sum(dim=0))
    found["accuracy"] = _with_width(found["accuracy"], values["accuracy"], torch.tensor(len(sums)))
    recall = values["recall"]
    if ((recall == 0) | (recall == 1) | recall.isnan()).all():  # and so in every resample
        found["balanced_accuracy"] = found["recall"].nanmean(dim=0)
    return found


def most_of_none(cases: Tensor) -> Tensor:
    """Wilson's upper 95 % limit of a share where none of ``cases`` is a hit."""
    return _Z2 / (cases + _Z2)


def _with_width(interval: Tensor, value: Tensor, cases: Tensor) -> Tensor:
    """``interval`` (…, 2), and Wilson's where ``value`` (…) is 0 or 1."""
    most = most_of_none(cases)
    none = torch.stack([torch.zeros_like(most), most], dim=-1)
    all_of_them = torch.stack([1 - most, torch.ones_like(most)], dim=-1)
    interval = torch.where((value == 0)[..., None], none, interval)
    return torch.where((value == 1)[..., None], all_of_them, interval)


def weighted_auroc(scores: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
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
