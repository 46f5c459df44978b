from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from oneround.distillation.synthesis.statistics import watch
from oneround.methods.dafl import Features, Options, generator_terms
from oneround.models.ensemble import Client, Ensemble
from oneround.runs.run import Run
from tests.methods import distilling
from tests.tiny import DENSENET, IMAGE, RESNET, TASK, clients, seeded


def test_makes_one_network_from_client_models_alone(tmp_path: Path) -> None:
    distilling.check_result_and_log("dafl", tmp_path, {"one_hot", "entropy", "activation"})


def test_interrupted_and_resumed_is_bit_equal(tmp_path: Path) -> None:
    distilling.check_resumed("dafl", tmp_path)


def test_flops_have_a_limit(tmp_path: Path) -> None:
    distilling.check_flops("dafl", tmp_path)


def test_client_models_of_different_architectures(tmp_path: Path) -> None:
    with Run(tmp_path, {}) as run:
        mixed = distilling.different(batch_norm=False)
        assert distilling.made("dafl", run, ensemble=mixed).architectures == (DENSENET,)


def test_terms_by_hand() -> None:
    rng = np.random.default_rng(0)
    z = rng.standard_normal((6, 3))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    features = {0: torch.randn(6, 5).double(), 2: torch.randn(6, 9).double()}
    options = Options(one_hot_weight=0.7, entropy_weight=3, activation_weight=0.2)
    found = generator_terms(torch.tensor(p).log(), features, options)
    mean = p.mean(0)
    strengths = [np.abs(f.numpy()).mean() for f in features.values()]
    expected = {
        "one_hot": 0.7 * np.mean([-np.log(row.max()) for row in p]),
        "entropy": 3 * sum(mean * np.log10(mean)),
        "activation": -0.2 * np.mean(strengths),
    }
    assert {name: term.item() for name, term in found.items()} == pytest.approx(expected)


def test_features_are_what_enters_the_last_linear_layer() -> None:
    no_linear = nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    teacher = watch(Ensemble([*clients(2), Client("none", no_linear, RESNET, 9, (1, 1, 1))], TASK))
    features = Features(teacher)
    x = torch.randn(4, *IMAGE.shape, generator=seeded())
    teacher(x)
    assert set(features.last) == {0, 1}
    for k, feature in features.last.items():
        model = teacher.models[k]
        assert torch.allclose(nn.functional.linear(feature, model.fc.weight, model.fc.bias),
                              model(x), atol=1e-5)  # fmt: skip
    alone = Ensemble(teacher.clients[2:], TASK)
    assert Features(alone).last == {}
    assert "activation" not in generator_terms(alone(x), {}, Options())


def test_the_generator_learns(tmp_path: Path) -> None:
    """Its images come to be of all classes, each for certain."""
    changes = ["epochs=8", "iterations=5", "batch_size=8", "width=4", "activation_weight=0"]
    with Run(tmp_path, {}) as run:
        distilling.made("dafl", run, [*changes, "one_hot_weight=1", "entropy_weight=10"])
    first, *_, last = run.curves()["distillation"]
    assert last["one_hot"] + last["entropy"] < first["one_hot"] + first["entropy"]
