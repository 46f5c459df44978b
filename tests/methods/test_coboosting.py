from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from oneround.errors import OneRoundError
from oneround.methods.coboosting import Options, Votes, harder, judged
from oneround.models.ensemble import RULES, Client, Ensemble
from oneround.runs.run import Run
from tests.methods import distilling
from tests.tiny import DENSENET, IMAGE, RESNET, TASK, clients, network, seeded


def test_makes_one_network_from_client_models_alone(tmp_path: Path) -> None:
    terms = {"one_hot", "adversarial", "vote_1", "vote_2"}
    distilling.check_result_and_log("coboosting", tmp_path, terms)


def test_interrupted_and_resumed_is_bit_equal(tmp_path: Path) -> None:
    distilling.check_resumed("coboosting", tmp_path)


def test_flops_have_a_limit(tmp_path: Path) -> None:
    distilling.check_flops("coboosting", tmp_path)


def test_client_models_of_different_architectures(tmp_path: Path) -> None:
    with Run(tmp_path / "without", {}) as run:
        mixed = distilling.different(batch_norm=False)
        assert distilling.made("coboosting", run, ensemble=mixed).architectures == (DENSENET,)
    with Run(tmp_path / "refused", {}) as run, pytest.raises(OneRoundError, match="group has no"):
        distilling.made("coboosting", run, ["bn_weight=1"], mixed)
    with Run(tmp_path / "with", {}) as run:
        mixed = distilling.different(batch_norm=True)
        distilling.made("coboosting", run, ["bn_weight=1"], mixed)
    assert run.curves()["distillation"][-1]["batch_norm"] > 0


def test_votes_move_one_step_with_every_batch_of_earlier_epochs(tmp_path: Path) -> None:
    with Run(tmp_path, {}) as run:
        distilling.made("coboosting", run, ["vote_step=0.01", "vote_decay=0.5"])
    votes = [entry["vote_1"] for entry in run.curves()["distillation"]]
    assert votes[0] == 0.5, "there are no earlier images in the first epoch"
    assert abs(votes[1] - votes[0]) == pytest.approx(0.01 * 0.5, abs=1e-6)
    steps = abs(votes[2] - votes[1]) / (0.01 * 0.5**2)
    assert steps == pytest.approx(2, abs=1e-4) or steps == pytest.approx(0, abs=1e-4)


class Says(nn.Module):
    """For an image of class c (its first value), logits that rise or fall at c."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.sign * nn.functional.one_hot(x[:, 0, 0, 0].long(), 3).float()


@pytest.mark.parametrize("rule", RULES)
def test_votes_move_to_the_better_client(rule: str) -> None:
    members = [Client(str(sign), Says(sign), RESNET, 9, (1, 1, 1)) for sign in (-1.0, 0.3, 2.0)]
    teacher = Ensemble(members, TASK, rule)
    votes, targets = Votes(teacher), torch.arange(6) % 3
    x = targets.float().view(-1, 1, 1, 1).expand(6, 3, 4, 4)
    assert votes.value.tolist() == pytest.approx([1 / 3] * 3)
    before = nn.functional.nll_loss(teacher(x), targets)
    for _ in range(100):
        votes.move(teacher, x, targets, 0.01)
    assert nn.functional.nll_loss(teacher(x), targets) < before
    assert teacher.votes is votes.value
    bad, _, good = votes.value.tolist()
    assert (bad, good) == pytest.approx((1e-3, 1)), "they stay within their limits"
    assert set(votes.state_dict()) == {"value"}


def test_terms_by_hand() -> None:
    teacher, student = Ensemble(clients(2), TASK, "logits"), network(9)
    x = torch.randn(8, *IMAGE.shape, generator=seeded())
    y = torch.arange(8) % 3
    options = Options(one_hot_weight=0.5, hardness=2, adversarial_weight=0.4)
    found = judged(teacher, student, x, y, options)

    with torch.no_grad():
        z = torch.stack([model(x) for model in teacher.models]).mean(0)
        logits = student(x)
    p = z.softmax(1)[torch.arange(8), y]
    softened, q = (z / 3).softmax(1), (logits / 3).softmax(1)
    divergence = 9 * (softened * (softened / q).log()).sum(1)
    assert found["one_hot"].item() == pytest.approx(
        0.5 * ((1 - p) ** 2 * -p.log()).mean().item(), rel=1e-4
    )
    assert found["adversarial"].item() == pytest.approx(-0.4 * divergence.mean().item(), rel=1e-3)


def test_images_are_hard_but_their_weight_has_no_gradient() -> None:
    teacher = Ensemble(clients(1), TASK, "logits")
    x = torch.randn(1, *IMAGE.shape, generator=seeded()).requires_grad_()
    options, y = Options(adversarial_weight=0), torch.tensor([1])
    (found,) = torch.autograd.grad(judged(teacher, network(9), x, y, options)["one_hot"], x)
    loss = nn.functional.cross_entropy(teacher.models[0](x), y)
    (slope,) = torch.autograd.grad(loss, x)
    assert torch.allclose(found, (1 - (-loss).exp()) * slope, atol=1e-5)


def test_harder_images_are_where_the_outputs_change_most() -> None:
    teacher = Ensemble(clients(2), TASK, "logits")
    x = torch.randn(4, *IMAGE.shape, generator=seeded())
    moved = harder(teacher, x.clone(), 1e-3, seeded(1))
    assert torch.allclose((moved - x).abs(), torch.tensor(1e-3), atol=1e-6)
    assert not moved.requires_grad
    u = torch.rand(4, 3, generator=seeded(1)) * 2 - 1

    def along(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            z = torch.stack([model(x) for model in teacher.models]).mean(0)
        return (u * (z / 4).softmax(1)).sum(1)

    others = [x + 1e-3 * torch.randn(x.shape, generator=seeded(n)).sign() for n in range(5)]
    assert all((along(moved) > along(other)).all() for other in [x, *others])
