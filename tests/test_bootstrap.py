from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.classification import binary_auroc

from oneround.bootstrap import weighted_auroc
from tests.test_evaluation import predictions


def test_weighted_auroc_equals_repeating_the_images_even_with_ties():
    probabilities, labels = predictions(80, classes=2)
    scores = (probabilities[:, 1] * 6).round() / 6  # many ties
    weights = torch.randint(4, (80, 5), generator=torch.Generator().manual_seed(1))
    areas = weighted_auroc(scores, labels == 1, weights.float())
    for column, area in zip(weights.T, areas, strict=True):
        repeated = torch.arange(80).repeat_interleave(column)
        reference = binary_auroc(scores[repeated], labels[repeated])
        assert float(area) == pytest.approx(float(reference), abs=1e-5)
