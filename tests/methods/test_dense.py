from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from oneround.distillation.synthesis.statistics import statistics_distance, watch
from oneround.errors import OneRoundError
from oneround.methods.dense import Options, judged
from oneround.models.ensemble import Ensemble
from oneround.runs.run import Run
from tests.methods import distilling
from tests.tiny import DENSENET, IMAGE, TASK, clients, network, seeded


def test_makes_one_network_from_client_models_alone(tmp_path: Path) -> None:
    distilling.check_result_and_log("dense", tmp_path, {"one_hot", "adversarial", "batch_norm"})


def test_interrupted_and_resumed_is_bit_equal(tmp_path: Path) -> None:
    distilling.check_resumed("dense", tmp_path / "run")
    distilling.check_resumed("dense", tmp_path / "less often", ["checkpoint_every=2"])


def test_flops_have_a_limit(tmp_path: Path) -> None:
    distilling.check_flops("dense", tmp_path)


def test_client_models_of_different_architectures(tmp_path: Path) -> None:
    with Run(tmp_path, {}) as run:
        mixed = distilling.different(batch_norm=True)
        assert distilling.made("dense", run, ensemble=mixed).architectures == (DENSENET,)


def test_client_models_without_batch_norm_need_weight_zero(tmp_path: Path) -> None:
    mixed = distilling.different(batch_norm=False)
    with Run(tmp_path / "refused", {}) as run, pytest.raises(OneRoundError, match="group has no"):
        distilling.made("dense", run, ensemble=mixed)
    with Run(tmp_path / "made", {}) as run:
        distilling.made("dense", run, ["bn_weight=0"], mixed)
    assert "batch_norm" not in run.curves()["distillation"][-1]


def test_every_epoch_goes_once_over_a_growing_pool(tmp_path: Path) -> None:
    with Run(tmp_path, {}) as run:
        distilling.made("dense", run)
    assert [entry["images"] for entry in run.curves()["distillation"]] == [4, 8, 12]


def test_terms_by_hand() -> None:
    ensemble, student = Ensemble(clients(2), TASK, "logits"), network(9)
    watched = watch(ensemble)
    x = torch.randn(8, *IMAGE.shape, generator=seeded())
    y = torch.arange(8) % 3
    options = Options(one_hot_weight=0.5, bn_weight=0.3, adversarial_weight=2, augment=())
    found = judged(watched, student, x, y, options, seeded())

    with torch.no_grad():
        teacher = torch.stack([model(x) for model in ensemble.models]).mean(0)
        logits = student(x)
    p, q = teacher.softmax(1), logits.softmax(1)
    differ = teacher.argmax(1) != logits.argmax(1)
    assert differ.any()
    assert not differ.all()
    divergence = (p * (p / q).log()).sum(1) * differ
    assert found["one_hot"].item() == pytest.approx(
        0.5 * nn.functional.cross_entropy(teacher, y).item(), rel=1e-4
    )
    assert found["adversarial"].item() == pytest.approx(-2 * divergence.mean().item(), rel=1e-3)
    distance = statistics_distance(watched, "sum").item() / 2
    assert found["batch_norm"].item() == pytest.approx(0.3 * distance, rel=1e-5)
