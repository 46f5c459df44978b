from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from oneround import models
from oneround.data.structure_noise import NoiseOptions, StructureNoise
from oneround.distillation.student import new_student
from oneround.distillation.synthesis import ImageBank
from oneround.distillation.training import Lessons, recalibrates, train_student
from oneround.errors import OneRoundError
from oneround.methods.kang2025 import Mixtures, NoiseDistillationOptions, Teachers, beta
from oneround.models.ensemble import Ensemble
from oneround.runs.stage import Stage
from oneround.study import ArchitectureSpec
from tests.tiny import IMAGE, RESNET, TASK, clients, equal, interrupted, network, seeded

NOISE = StructureNoise(IMAGE, NoiseOptions(families=("gaussian", "gratings")))


def options(**changes: Any) -> NoiseDistillationOptions:
    tiny = {
        "steps": 8,
        "batch_size": 4,
        "learning_rate": 0.05,
        "temperature": 2.0,
        "noise_pool": 8,
        "augment": ("flip",),
        "checkpoint_every": 3,
        "mix": "noise",
        "batches": 0,
        "start": "scratch",
    }
    return NoiseDistillationOptions(**(tiny | changes))


def bank(count: int = 6) -> ImageBank:
    images = torch.randn(count, *IMAGE.shape, generator=seeded()).clamp(-1, 1).half()
    return ImageBank(images, torch.arange(count) % 3, torch.ones(count))


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (2.0, 5.0), (0.3, 0.3)])
def test_beta_has_the_right_moments(a: float, b: float) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    drawn = beta(20_000, a, b, seeded())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(drawn, beta(20_000, a, b, seeded()))
    assert drawn.mean().item() == pytest.approx(a / (a + b), abs=0.01)
    assert drawn.var().item() == pytest.approx(a * b / ((a + b) ** 2 * (a + b + 1)), abs=0.005)


def test_samples_are_mixtures_of_bank_and_noise() -> None:
    white = ImageBank(torch.ones(2, *IMAGE.shape).half(), torch.arange(2), torch.ones(2))
    samples = Mixtures(white, NOISE, options(beta=(2.0, 2.0)), Stage("distillation"))
    samples.noise = -torch.ones_like(samples.noise)
    x, weight = samples.draw(50, seeded())
    assert x.shape == (50, *IMAGE.shape)
    assert weight.shape == (50,)
    expected = weight * 1 + (1 - weight) * -1
    assert torch.allclose(x, expected.view(-1, 1, 1, 1).expand_as(x), atol=1e-3)
    assert torch.equal(x, samples.draw(50, seeded())[0])


@pytest.mark.parametrize(("per", "different"), [("batch", 1), ("image", 50)])
def test_lambda_of_a_batch_or_of_every_image(per: Any, different: int) -> None:
    samples = Mixtures(bank(), NOISE, options(weight_per=per), Stage("distillation"))
    assert len(samples.draw(50, seeded())[1].unique()) == different


def test_noise_is_from_the_pool_at_random_positions() -> None:
    samples = Mixtures(bank(), NOISE, options(beta=(1e-3, 1e3)), Stage("distillation"))
    assert samples.noise.shape == (8, *IMAGE.shape)
    x, weight = samples.draw(3, seeded())
    assert weight.max() < 0.01
    pool = samples.noise.float().flatten(1).sort(1)[0]
    distances = torch.cdist(x.flatten(1).sort(1)[0], pool, p=float("inf"))
    assert distances.amin(1).max() < 0.05


def test_samples_without_noise() -> None:
    of_bank = bank()
    stage = Stage("distillation")
    x, weight = Mixtures(of_bank, NOISE, options(mix="none", augment=()), stage).draw(9, seeded())
    known = of_bank.images.float().flatten(1)
    assert torch.cdist(x.flatten(1), known).amin(1).max() < 1e-3
    assert torch.equal(weight, torch.ones(9))
    mixed, weight = Mixtures(of_bank, NOISE, options(mix="bank", augment=()), stage).draw(
        9, seeded()
    )
    assert torch.cdist(mixed.flatten(1), known).amin(1).max() > 0.1
    assert weight.unique().numel() > 1
    sampled = Mixtures(of_bank, NOISE, options(mix="bank", augment=()), stage)(9, seeded())
    assert torch.equal(sampled[0], mixed)
    assert torch.equal(sampled[1], torch.ones(9)), "the original ensemble teaches all of it"


def test_weights_of_both_teachers_are_lambda_and_the_rest() -> None:
    samples = Mixtures(bank(), NOISE, options(), Stage("distillation"))
    x, weight = samples(5, seeded())
    same, share = samples.draw(5, seeded())
    assert torch.equal(x, same)
    assert torch.equal(weight, torch.stack([share, 1 - share]))


def lessons_of(teachers: Teachers, chosen: NoiseDistillationOptions, stage: Stage) -> Lessons:
    return Lessons(Mixtures(bank(), NOISE, chosen, stage), teachers, chosen, stage)


class Counting(Ensemble):
    """Keeps what it is asked."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.asked: list[Any] = []

    def folded(self) -> Ensemble:
        return self

    def forward(self, x: torch.Tensor, asked: Any = None) -> torch.Tensor:
        self.asked.append(asked)
        return super().forward(x, asked)


def test_each_batch_is_taught_once_and_comes_once_in_every_round() -> None:
    chosen, stage = options(batches=3), Stage("distillation")
    teacher, adapted = Counting(clients(2), TASK), Ensemble(clients(2)[::-1], TASK)
    lessons = lessons_of(Teachers(teacher, adapted, chosen), chosen, stage)
    rounds = [[lessons.number(step) for step in range(1 + r, 4 + r)] for r in (0, 3, 6, 9)]
    assert all(sorted(numbers) == [0, 1, 2] for numbers in rounds)
    assert len({tuple(numbers) for numbers in rounds}) > 1, "always in the same order"
    first, again, other = (lessons.batch(n) for n in (0, 0, 1))
    assert len(teacher.asked) == 2
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    for x, weight, (original, noisy) in (first, again, other):
        assert torch.equal(original, Ensemble(clients(2), TASK)(x))
        assert torch.allclose(noisy, adapted(x), atol=1e-5)
        assert weight.shape == (2, 4)


def test_endless_samples() -> None:
    stage, teacher = Stage("distillation"), Ensemble(clients(1), TASK)
    chosen = options(batches=0)
    lessons = lessons_of(Teachers(teacher, teacher, chosen), chosen, stage)
    assert [lessons.number(step) for step in (1, 2, 700)] == [1, 2, 700]
    lessons.batch(1)
    assert not lessons.taught


def train(chosen: NoiseDistillationOptions, stage: Stage, **parts: Any) -> nn.Module:
    ensemble = parts.get("ensemble", Ensemble(clients(2), TASK, "probabilities"))
    adapted = parts.get("adapted", Ensemble(clients(2)[::-1], TASK, "logits"))
    student, _ = new_student(ensemble, chosen, stage)
    return learned(student, ensemble, adapted, bank(), chosen, stage)


def learned(
    student: nn.Module,
    ensemble: Ensemble,
    adapted: Ensemble,
    images: ImageBank,
    chosen: NoiseDistillationOptions,
    stage: Stage,
) -> nn.Module:
    teachers = Teachers(ensemble, adapted, chosen)
    end = images if recalibrates(chosen, mixtures=chosen.mix != "none") else None
    samples = Mixtures(images, NOISE, chosen, stage)
    return train_student(
        teachers, samples, student, chosen, stage, names=teachers.names, recalibrate_on=end
    )


class Unasked(Ensemble):
    """Fails when it is asked."""

    def folded(self) -> Ensemble:
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError


def test_student_comes_close_to_its_teacher() -> None:
    chosen = options(steps=120, batch_size=8, mix="none", augment=(), checkpoint_every=1000)
    stage = Stage("distillation")
    student = train(chosen, stage, adapted=Unasked(clients(1), TASK))
    assert not student.training
    x, ensemble = bank().images.float(), Ensemble(clients(2), TASK, "probabilities")
    with torch.no_grad():
        difference = (student(x).softmax(1) - ensemble(x).exp()).abs().mean()
        before = (network(9)(x).softmax(1) - ensemble(x).exp()).abs().mean()
    assert difference < 0.5 * before
    assert [entry["step"] for entry in stage.curve] == [50, 100, 120]
    assert stage.curve[-1]["loss"] < stage.curve[0]["loss"]


@pytest.mark.parametrize(
    "changes",
    [
        {"average": 0.0},
        {"average": 0.9},
        {"average": 0.5, "batch_norm": "train", "weight_per": "image", "beta": (0.5, 2.0)},
        {"batch_norm": "frozen", "start": "auto", "learning_rate": 1e-4},
        {"mix": "bank", "schedule": "constant", "momentum": 0.0},
        {"batches": 2},
        {"batches": 5, "batch_norm": "recalibrated"},
    ],
    ids=str,
)
def test_interrupted_and_resumed_is_bit_equal(tmp_path: Path, changes: dict[str, Any]) -> None:
    chosen = options(**changes)
    whole = Stage("distillation", 2)
    straight = train(chosen, whole)
    for step in (2, 3, 7):  # before the first checkpoint, at it, after the second
        with interrupted(stage := Stage("distillation", 2, tmp_path), step):
            train(chosen, stage)
    resumed = Stage("distillation", 2, tmp_path)
    assert equal(train(chosen, resumed), straight)
    assert resumed.curve == whole.curve
    assert resumed.cost.flops == whole.cost.flops
    assert equal(train(chosen, Stage("distillation", 2, tmp_path)), straight)


def test_average_is_the_exponential_mean_of_the_weights() -> None:
    """By hand, from runs that stop after 1, 2 and 3 steps of the same path."""
    fixed = {"schedule": "constant", "batch_norm": "train"}
    path = [train(options(steps=n, **fixed), Stage("distillation")) for n in (1, 2, 3)]
    averaged = train(options(steps=3, average=0.75, **fixed), Stage("distillation"))
    for name in ("fc.weight", "conv1.weight", "layer4.1.conv2.weight"):
        one, two, three = (model.get_parameter(name) for model in path)
        expected = 0.75 * (0.75 * one + 0.25 * two) + 0.25 * three
        assert torch.allclose(averaged.get_parameter(name), expected, atol=1e-5)


def test_statistics_of_the_student() -> None:
    start = network(1)  # of the site with the most images
    chosen = options(batch_norm="frozen", start="auto", learning_rate=1e-4)
    frozen = train(chosen, Stage("distillation"))
    assert torch.equal(frozen.bn1.running_mean, start.bn1.running_mean)
    assert not torch.equal(frozen.fc.weight, start.fc.weight)
    recalibrated = train(options(batch_norm="recalibrated"), Stage("distillation"))
    with torch.no_grad():
        outputs = recalibrated.conv1(bank().images.float()).transpose(0, 1).flatten(1)
    assert torch.allclose(recalibrated.bn1.running_mean, outputs.mean(1), atol=1e-4)
    assert torch.allclose(recalibrated.bn1.running_var, outputs.var(1), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("mix", "same"), [("noise", "train"), ("none", "recalibrated")])
def test_statistics_that_fit_what_the_student_has_learned_from(mix: str, same: str) -> None:
    auto, chosen, other = (
        train(options(mix=mix, batch_norm=b), Stage("distillation"))
        for b in ("auto", same, {"train": "recalibrated"}.get(same, "train"))
    )
    assert equal(auto, chosen)
    assert not equal(auto, other)


def test_a_last_single_image_of_the_bank_is_no_batch_of_its_own() -> None:
    """257 images at a size where the last feature map is one pixel."""
    small = ArchitectureSpec(arguments={"width": 2, "stem": "standard"})
    chosen = options(steps=1, student=small, mix="none", batch_norm="recalibrated")
    stage, ensemble = Stage("distillation"), Ensemble(clients(1), TASK)
    student, _ = new_student(ensemble, chosen, stage)
    trained = learned(student, ensemble, ensemble, bank(257), chosen, stage)
    assert isinstance(trained, nn.Module)


@pytest.mark.parametrize("teachers", ["original", "noise-adapted"])
def test_one_teacher_alone(teachers: Any) -> None:
    """The other one is never asked, and the loss is that of the one."""
    idle = {"noise-adapted": "ensemble", "original": "adapted"}[teachers]
    stage = Stage("distillation")
    train(options(teachers=teachers), stage, **{idle: Unasked(clients(2), TASK)})
    entry = stage.curve[-1]
    assert entry["loss"] > 0
    assert not {"original", "noise_adapted"} & entry.keys()


def test_terms_of_both_teachers_are_logged() -> None:
    stage = Stage("distillation")
    train(options(), stage)
    entry = stage.curve[-1]
    assert entry["loss"] == pytest.approx(entry["original"] + entry["noise_adapted"], rel=1e-5)
    assert min(entry["original"], entry["noise_adapted"]) > 0


def test_a_distillation_that_diverges_says_so() -> None:
    with pytest.raises(OneRoundError, match=r"not finite at step \d") as caught:
        train(options(learning_rate=1e30), Stage("distillation"))
    assert "learning_rate" in caught.value.remedy


def test_teachers_do_not_change() -> None:
    ensemble, adapted = Ensemble(clients(2), TASK), Ensemble(clients(2), TASK)
    before = {name: value.clone() for name, value in ensemble.state_dict().items()}
    chosen, stage = options(steps=2), Stage("distillation")
    student = models.build(RESNET, IMAGE, 3)
    learned(student, ensemble, adapted, bank(), chosen, stage)
    for teacher in (ensemble, adapted):
        assert all(torch.equal(v, before[name]) for name, v in teacher.state_dict().items())


def test_a_part_of_the_clients_teaches_each_batch() -> None:
    ensemble, stage = Ensemble(clients(4), TASK), Stage("distillation")
    watched = Counting(clients(4), TASK)
    chosen = options(mix="none", batches=5, steps=10, asked=2)
    lessons = lessons_of(Teachers(watched, watched, chosen), chosen, stage)
    for number in range(5):
        x, _, taught = lessons.batch(number)
        assert torch.allclose(taught, ensemble(x, watched.asked[number]), atol=1e-5)
    assert all(len(asked) == 2 for asked in watched.asked)
    assert len(set(watched.asked)) > 1
