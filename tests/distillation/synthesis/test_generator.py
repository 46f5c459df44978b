from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from oneround.distillation.synthesis.generator import (
    Generator,
    GeneratorOptions,
    adversarial_term,
    batch_norm_term,
    fit_images,
)
from oneround.distillation.synthesis.statistics import statistics_distance, watch
from oneround.models.ensemble import Ensemble
from oneround.runs.loop import Loop
from oneround.runs.stage import Stage
from oneround.study import ImageSpec
from tests.tiny import IMAGE, TASK, clients, equal, seeded

OPTIONS = GeneratorOptions(latent=5, width=4, steps=8, learning_rate=0.01)


@pytest.mark.parametrize("output", ["sigmoid", "tanh"])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 13), (3, 28, 28), (1, 37, 100), (3, 8, 70)])
def test_images_of_any_size(shape: tuple[int, int, int], output: str) -> None:
    image = ImageSpec(channels=shape[0], height=shape[1], width=shape[2], mean=(0.3,), std=(0.2,))
    x = Generator(image, 5, 4, output, seed=1)(torch.randn(3, 5, generator=seeded()))
    assert x.shape == (3, *shape)
    if output == "sigmoid":
        pixels = x * 0.2 + 0.3
        assert pixels.min() >= -1e-6
        assert pixels.max() <= 1 + 1e-6
    else:
        assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(shape[0]), atol=1e-4)
        assert torch.allclose(x.var((0, 2, 3)), torch.ones(shape[0]), atol=5e-2)


def parameters(side: int) -> int:
    image = ImageSpec(height=side, width=side)
    with torch.device("meta"):
        network = Generator(image, 256, 64, "sigmoid", 0)
        assert network(torch.zeros(2, 256)).shape == (2, *image.shape)
    return sum(p.numel() for p in network.parameters())


def test_size_of_the_network() -> None:
    linear, convolutions = 257 * 128 * 8 * 8, 9 * (128 * 128 + 128 * 64) + (9 * 64 + 1) * 3
    norms = 2 * (128 + 128 + 64)
    assert parameters(32) == linear + convolutions + norms, "as published"
    assert parameters(1024) < 10e6, "a start of 256 × 256 would have 2 billion"


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, again, other = (Generator(IMAGE, 5, 4, "sigmoid", seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(one, again)
    assert not equal(one, other)
    assert 0.015 < one.start.weight.std() < 0.025


def fit(judge: object, stage: Stage, steps: int = 8) -> tuple[torch.Tensor, dict[str, float]]:
    options = OPTIONS.model_copy(update={"steps": steps})
    return fit_images(Loop(stage, 1), IMAGE, 6, judge, options, seeded())


def test_images_become_what_is_asked() -> None:
    def judge(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"bright": -x.mean(), "contrast": 0.1 * x.std()}

    first, before = fit(judge, Stage("distillation"), 1)
    images, after = fit(judge, Stage("distillation"), 30)
    assert images.mean() > first.mean() + 0.1
    assert sum(after.values()) < sum(before.values())
    assert after["bright"] == pytest.approx(-images.mean().item(), rel=1e-5)
    assert torch.equal(images, fit(judge, Stage("distillation"), 30)[0])


def test_the_images_of_the_lowest_loss_are_kept() -> None:
    losses, seen = iter([3.0, 1.0, 2.0, 5.0]), []

    def judge(x: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(x.detach())
        return {"term": 0 * x.sum() + next(losses) + x.mean() - x.mean().detach()}

    images, terms = fit(judge, Stage("distillation"), 4)
    assert torch.equal(images, seen[1])
    assert terms == {"term": 1.0}


def test_fitting_stops_when_the_flops_are_spent() -> None:
    def judge(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"bright": -x.mean()}

    fit(judge, whole := Stage("distillation"), 1)
    loop = Loop(whole, 1)
    fit_images(loop, IMAGE, 6, judge, OPTIONS.model_copy(update={"steps": 1}), seeded())
    step = loop.meter.flops
    limited = Loop(Stage("distillation", flops=2.5 * step), 1)
    images, _ = fit_images(limited, IMAGE, 6, judge, OPTIONS, seeded())
    assert limited.meter.flops == 3 * step
    assert images.shape == (6, *IMAGE.shape)


@pytest.mark.parametrize("boundary", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_adversarial_term_by_loop(boundary: bool, temperature: float) -> None:
    rng = np.random.default_rng(1)
    teacher, student = rng.standard_normal((2, 8, 3))
    log_p = torch.tensor(teacher).log_softmax(1)
    expected, counted = 0.0, 0
    for t, s in zip(teacher, student, strict=True):
        p, q = (np.exp(z / temperature) / np.exp(z / temperature).sum() for z in (t, s))
        if not boundary or t.argmax() != s.argmax():
            expected -= temperature**2 * sum(p * np.log(p / q)) / 8
            counted += 1
    assert counted == 8 or boundary
    found = adversarial_term(log_p, torch.tensor(student), temperature, boundary=boundary)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_batch_norm_term_is_the_mean_over_clients(tmp_path: Path) -> None:
    watched = watch(Ensemble(clients(3), TASK))
    watched(torch.randn(4, *IMAGE.shape, generator=seeded()))
    each = [statistics_distance(model, "sum").item() for model in watched.models]
    assert batch_norm_term(watched).item() == pytest.approx(math.fsum(each) / 3, rel=1e-5)
