from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from oneround.coordinator import agreement
from oneround.coordinator.agreement import agreements
from oneround.models.ensemble import Client
from tests import tiny


def sites(count: int, classes: int) -> list[Client]:
    counts = (50,) * classes
    return [Client(f"site-{k}", nn.Identity(), tiny.RESNET, 300, counts) for k in range(count)]


def test_agreement_and_gap_are_those_of_the_correlation_matrices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against numpy and all permutations."""
    logits = [torch.randn(50, 4, generator=tiny.seeded(k)) for k in range(4)]
    clients = sites(4, 4)
    z = [one.numpy() - one.numpy().mean(1, keepdims=True) for one in logits]

    def match(j: int, k: int) -> np.ndarray:  # the standard deviation divides by N − 1
        return np.corrcoef(z[j].T, z[k].T)[:4, 4:] * 49 / 50

    def among(j: int, k: int) -> float:
        m = match(j, k)
        return float(np.diag(m).mean() - m[~np.eye(4, dtype=bool)].mean())

    whole = [np.mean(sorted(among(j, k) for j in range(4) if j != k)[1:]) for k in range(4)]
    monkeypatch.setattr(agreement, "LEAST_AGREEMENT", -1)
    found = agreements(clients, logits, range(4), range(4))
    for k in range(4):
        mean = sum(match(j, k) for j in range(4) if j != k) / 3
        best = max(mean[range(4), p].mean() for p in itertools.permutations(range(4)))
        assert found[k].gap == pytest.approx(best - np.diag(mean).mean(), abs=1e-6)
        usual = np.median([a for j, a in enumerate(whole) if j != k])
        assert found[k].relative == pytest.approx(whole[k] / usual, rel=1e-4)
        assert found[k].witnesses == 3


def test_too_little_evidence() -> None:
    """Two classes beyond the first."""
    assert agreements(sites(2, 3), [torch.randn(50, 3)] * 2, [0, 1], [0, 1]) == {}
