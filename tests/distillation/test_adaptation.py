from __future__ import annotations

import pytest
import torch

from oneround import models
from oneround.data.structure_noise import NoiseOptions, StructureNoise
from oneround.distillation.adaptation import AdaptationOptions, adapt_to_noise
from oneround.errors import OneRoundError
from oneround.models.batch_norm import batch_norms
from oneround.models.ensemble import Client, Ensemble
from oneround.runs.stage import Stage
from oneround.study import ArchitectureSpec
from tests.tiny import IMAGE, TASK, clients, equal, network, seeded

NOISE = StructureNoise(IMAGE, NoiseOptions(families=("gaussian", "spectrum")))


def adapt(ensemble: Ensemble, **options: object) -> Ensemble:
    chosen = AdaptationOptions(**{"statistics": "running"} | options)
    return adapt_to_noise(ensemble, NOISE, chosen, Stage("adaptation", 3))


def test_adapted_statistics_are_those_of_the_noise() -> None:
    ensemble = Ensemble(clients(2), TASK)
    before = {name: value.clone() for name, value in ensemble.state_dict().items()}
    adapted = adapt(ensemble, batches=3, batch_size=5)
    for name, value in ensemble.state_dict().items():
        assert torch.equal(value, before[name]), "the original has changed"
    weights = dict(adapted.named_parameters())
    assert all(torch.equal(p, weights[name]) for name, p in ensemble.named_parameters())

    generator = Stage("adaptation", 3).generator()
    batches = [NOISE.sample(5, generator) for _ in range(3)]
    for model in adapted.models:
        outputs = [model.conv1(batch).transpose(0, 1).flatten(1) for batch in batches]
        mean = torch.stack([out.mean(1) for out in outputs]).mean(0)
        variance = torch.stack([out.var(1) for out in outputs]).mean(0)
        assert torch.allclose(model.bn1.running_mean, mean, atol=1e-5)
        assert torch.allclose(model.bn1.running_var, variance, atol=1e-5, rtol=1e-4)
        assert not model.training
    for model, client in zip(adapted.models, adapted.clients, strict=True):
        assert client.model is model


def test_momentum_keeps_a_part_of_the_original_statistics() -> None:
    ensemble = Ensemble(clients(1), TASK)
    full = adapt(ensemble, batches=1, batch_size=5)
    half = adapt(ensemble, batches=1, batch_size=5, momentum=0.5)
    old, new, mixed = (e.models[0].bn1.running_mean for e in (ensemble, full, half))
    assert torch.allclose(mixed, 0.5 * old + 0.5 * new, atol=1e-6)


def test_statistics_of_whatever_batch_comes() -> None:
    ensemble = Ensemble(clients(2), TASK)
    adapted = adapt(ensemble, statistics="batch")
    x = NOISE.sample(6, seeded())
    for original, copy in zip(ensemble.models, adapted.models, strict=True):
        assert not copy.training
        reference = network(0)
        reference.load_state_dict(original.state_dict())
        with torch.no_grad():
            assert torch.allclose(copy(x), reference.train()(x), atol=1e-5)
        assert next(batch_norms(original)).running_mean is not None


def test_adaptation_is_deterministic_and_measured() -> None:
    ensemble, stage = Ensemble(clients(2), TASK), Stage("adaptation", 3)
    options = AdaptationOptions(statistics="running", batches=2, batch_size=4)
    first = adapt_to_noise(ensemble, NOISE, options, stage)
    again = adapt_to_noise(ensemble, NOISE, options, Stage("adaptation", 3))
    assert equal(first, again)
    assert stage.cost.flops > 0


def test_refuses_networks_without_batch_norm() -> None:
    group = ArchitectureSpec(arguments={"width": 2, "norm": "group"})
    member = Client("north", models.build(group, IMAGE, 3), group, 10)
    with pytest.raises(OneRoundError, match="north has no BatchNorm"):
        adapt(Ensemble([member], TASK))
