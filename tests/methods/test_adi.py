from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from oneround.errors import OneRoundError
from oneround.methods.adi import Options, competitor, divergence
from oneround.runs.run import Run
from tests.methods import distilling
from tests.tiny import DENSENET, IMAGE, network, seeded


def test_makes_one_network_from_client_models_alone(tmp_path: Path) -> None:
    terms = {"cross_entropy", "batch_norm", "total_variation", "competition"}
    distilling.check_result_and_log("adi", tmp_path, terms)


def test_interrupted_and_resumed_is_bit_equal(tmp_path: Path) -> None:
    distilling.check_resumed("adi", tmp_path)


def test_flops_have_a_limit(tmp_path: Path) -> None:
    distilling.check_flops("adi", tmp_path)


def test_client_models_of_different_architectures(tmp_path: Path) -> None:
    mixed = distilling.different(batch_norm=False)
    with Run(tmp_path / "refused", {}) as run, pytest.raises(OneRoundError, match="group has no"):
        distilling.made("adi", run, ensemble=mixed)
    with Run(tmp_path / "made", {}) as run:
        made = distilling.made("adi", run, ["bn_weight=0"], mixed)
    assert made.architectures == (DENSENET,)


def test_the_student_competes_from_the_second_epoch_on(tmp_path: Path) -> None:
    with Run(tmp_path, {}) as run:
        distilling.made("adi", run)
    curve = run.curves()["distillation"]
    assert ["competition" in entry for entry in curve] == [False, True, True]
    assert [entry["images"] for entry in curve] == [4, 8, 12]


def test_competition_is_part_of_the_cost(tmp_path: Path) -> None:
    flops = []
    for epochs in (1, 2, 3):
        with Run(tmp_path / str(epochs), {}) as run:
            distilling.made("adi", run, [f"epochs={epochs}"])
        flops.append(run.costs()["distillation"].flops)
    assert flops[2] - flops[1] == flops[1] - flops[0] > flops[0]


def divergence_by_loop(teacher: np.ndarray, student: np.ndarray) -> float:
    """As in the code of the paper."""
    total = 0.0
    for t, s in zip(teacher, student, strict=True):
        p, q = (np.exp(z / 3) / np.exp(z / 3).sum() for z in (t, s))
        m = np.clip((p + q) / 2, 0.01, 0.99)
        for other in (np.clip(p, 0.01, 0.99), np.clip(q, 0.01, 0.99)):
            total += 0.5 * (m * np.log(m / other)).sum()
    return float(np.clip(total / len(teacher), 0, 1))


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_divergence_by_loop(scale: float) -> None:
    teacher, student = scale * np.random.default_rng(0).standard_normal((2, 7, 4))
    log_p = torch.tensor(teacher).log_softmax(1)
    found = divergence(log_p, torch.tensor(student)).item()
    assert found == pytest.approx(divergence_by_loop(teacher, student), rel=1e-6)


def test_images_are_drawn_to_where_the_student_disagrees() -> None:
    student, options = network(9), Options(competition_weight=0.3)
    x = torch.randn(4, *IMAGE.shape, generator=seeded()).requires_grad_()
    log_p = torch.log_softmax(torch.randn(4, 3, generator=seeded(1)), 1)
    term = competitor(student, options)(x, log_p)
    assert term.item() == pytest.approx(0.3 * (1 - divergence(log_p, student(x)).item()))
    agreed = competitor(student, options)(x, student(x).log_softmax(1).detach())
    assert agreed.item() == pytest.approx(0.3, abs=1e-6)
    assert term < agreed
    term.backward()
    assert x.grad.abs().sum() > 0
