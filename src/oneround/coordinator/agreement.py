"""What the outputs of client models on noise say of one another; see :mod:`.cross_check`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from oneround.models.ensemble import Client

KNOWN = 10  #: training images from which on a site counts as having a class
EVIDENCE = 4  #: smallest sum of |S| − 1 over the other sites from which agreement is judged
LEAST_AGREEMENT = 0.1  #: median agreement of the others below which nobody is judged
FEWEST_SITES = 3  #: number of sites below which nobody can be outvoted
TWINS = 0.9  #: mean correlation from which two sites are no witnesses for each other


@dataclass(frozen=True)
class Agreement:
    """What the other sites say of one.

    Attributes:
        relative: A_k, relative to the median of the others.
        gap: G_k: what the mean correlation gains when its outputs are renamed in the best way.
        witnesses: Number of other sites that it is compared with.
    """

    relative: float
    gap: float
    witnesses: int


@dataclass(frozen=True)
class _Witness:
    classes: list[int]  # that both sites have, S
    match: torch.Tensor  # correlations of the outputs of two sites, (|S|, |S|)

    @property
    def same(self) -> float:
        return self.match.trace().item() / len(self.classes)

    @property
    def agreement(self) -> float:
        """A_jk."""
        count = len(self.classes)
        other = (self.match.sum().item() - count * self.same) / (count * (count - 1))
        return self.same - other


def agreements(
    clients: Sequence[Client],
    outputs: Sequence[torch.Tensor],
    live: Sequence[int],
    believed: Collection[int],
) -> dict[int, Agreement]:
    """Agreement of each site that can be judged with the others.

    Args:
        clients: All sites.
        outputs: Logits of each client model for the same images, (N, classes) each.
        live: Indices of the sites that are compared.
        believed: Indices of the sites that are compared with.
    """
    heard = [k for k in live if k in believed]
    witnesses = {k: _witnesses(k, clients, outputs, heard) for k in live}
    agreement = {
        k: _mean(found)
        for k, found in witnesses.items()
        if sum(len(w.classes) - 1 for w in found) >= EVIDENCE
    }
    if len(agreement) < FEWEST_SITES:
        return {}
    usual = {k: median(a for j, a in agreement.items() if j != k) for k in agreement}
    return {
        k: Agreement(a / usual[k], _gap(witnesses[k], outputs[k].shape[1]), len(witnesses[k]))
        for k, a in agreement.items()
        if usual[k] >= LEAST_AGREEMENT
    }


def _witnesses(
    k: int, clients: Sequence[Client], outputs: Sequence[torch.Tensor], heard: Sequence[int]
) -> list[_Witness]:
    found = []
    for j in heard:
        shared = sorted(_known(clients[j], outputs[j]) & _known(clients[k], outputs[k]))
        if j != k and len(shared) >= 2:
            one = _Witness(shared, correlation(outputs[j][:, shared], outputs[k][:, shared]))
            if len(shared) == 2 or one.same < TWINS:  # who agrees with a copy agrees with itself
                found.append(one)
    return found


def _mean(witnesses: Sequence[_Witness]) -> float:
    """A_k."""
    pairs = sorted((w.agreement, len(w.classes) - 1) for w in witnesses)
    kept = pairs[1:] or pairs
    return sum(a * weight for a, weight in kept) / sum(weight for _, weight in kept)


def _gap(witnesses: Sequence[_Witness], classes: int) -> float:
    """G_k."""
    from scipy.optimize import linear_sum_assignment  # half a second to import

    total, count = np.zeros((classes, classes)), np.zeros((classes, classes))
    for witness in witnesses:
        block = np.ix_(witness.classes, witness.classes)
        total[block] += witness.match.numpy()
        count[block] += 1
    known = np.flatnonzero(count.diagonal())
    block = np.ix_(known, known)
    match = np.where(count[block] > 0, total[block] / count[block].clip(1), -1)
    return float((match[linear_sum_assignment(-match)] - match.diagonal()).mean())


def _known(client: Client, outputs: torch.Tensor) -> set[int]:
    """Classes of which the site claims images; all if it withholds its class counts."""
    counts = client.class_counts or (KNOWN,) * outputs.shape[1]
    return {c for c, count in enumerate(counts) if count >= KNOWN}


def centered(z: torch.Tensor) -> torch.Tensor:
    """Logits, (N, classes), with mean 0 over the classes."""
    return z - z.mean(1, keepdim=True)


def correlation(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Correlations over N images, (classes, classes), of centered outputs, (N, classes) each."""
    a, b = ((x - x.mean(0)) / x.std(0).clamp_min(1e-6) for x in map(centered, (one, other)))
    return a.T @ b / len(a)
