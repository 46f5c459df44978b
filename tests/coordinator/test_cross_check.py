from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from oneround.coordinator import agreement
from oneround.coordinator import cross_check as module
from oneround.coordinator.cross_check import cross_check
from oneround.models.ensemble import Client, Ensemble
from oneround.runs.run import Run
from tests import tiny


class Colors(nn.Module):
    """Answers by the mean color of an image, as all honest sites here do, each a little noisily."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        noise = 0.3 * torch.randn(3, 3, generator=tiny.seeded(seed))
        self.fc.weight.data, self.fc.bias.data = 5 * (torch.eye(3) + noise), torch.zeros(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def sites(count: int = 5, **changes: object) -> list[Client]:
    clients = [
        Client(f"site-{k}", Colors(k), tiny.RESNET, 300, (100, 120, 80), loss=0.3 + 0.02 * k)
        for k in range(count)
    ]
    return [replace(clients[0], **changes), *clients[1:]]  # type: ignore[arg-type]


def checked(clients: list[Client], **options: object) -> tuple[dict[str, Client], dict[str, str]]:
    found, suspects = cross_check(Ensemble(clients, tiny.TASK), Run(None, {}), **options)  # type: ignore[arg-type]
    why = {s.site: " ".join(o.why for o in suspects if o.site == s.site) for s in suspects}
    return {c.site: c for c in found}, why


def liar(change: Callable[[nn.Linear], object]) -> nn.Module:
    model = Colors(0)
    change(model.fc)
    return model


def test_honest_sites_are_used_as_they_are() -> None:
    clients = sites()
    found, suspects = checked(clients)
    assert suspects == {}
    stated = [(c.images, c.class_counts, c.loss) for c in clients]
    assert [(c.images, c.class_counts, c.loss) for c in found.values()] == stated


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda fc: fc.weight.data.copy_(fc.weight.data.roll(1, 0)), "contradicts"),
        (lambda fc: fc.weight.data.neg_(), "contradicts"),
        (lambda fc: fc.weight.data.mul_(100), "times as much"),
        (lambda fc: fc.weight.data.mul_(1e-3), "times as much"),
        (lambda fc: fc.weight.data.mul_(10), "weights of its last layer"),
        (lambda fc: fc.bias.data.fill_(float("inf")), "NaN or infinite"),
    ],
    ids=["permuted", "flipped", "scaled", "constant", "ten times", "infinite"],
)
def test_liar_is_named_and_left_out(change: Callable[[nn.Linear], object], why: str) -> None:
    found, suspects = checked(sites(model=liar(change)))
    assert list(found) == ["site-1", "site-2", "site-3", "site-4"]
    assert list(suspects) == ["site-0"]
    assert why in suspects["site-0"]


def test_trusted_site_is_named_and_used() -> None:
    model = liar(lambda fc: fc.weight.data.neg_())
    found, suspects = checked(sites(model=model), keep=["site-0"])
    assert len(found) == 5
    assert "used all the same" in suspects["site-0"]


def test_two_sites_cannot_outvote_each_other() -> None:
    model = liar(lambda fc: fc.weight.data.neg_())
    assert checked(sites(2, model=model))[1] == {}
    found, suspects = checked(sites(3, model=model))
    assert list(suspects) == ["site-0"]
    assert len(found) == 2


def test_claims_are_bounded() -> None:
    found, suspects = checked(sites(images=10**12, class_counts=(10**12 - 2, 1, 1), loss=0.0))
    client = found["site-0"]
    assert client.images == 300
    assert client.class_counts == (300, 0, 0)
    assert client.doubted, "no student starts from its client model"
    assert "count as 300" in suspects["site-0"]
    found, suspects = checked(sites(loss=1e-300))
    assert found["site-0"].loss is None
    assert "loss of 1.0e-300" in suspects["site-0"]


def test_loss_of_a_site_with_one_class_may_be_small() -> None:
    assert checked(sites(class_counts=(299, 1, 0), loss=0.01))[1] == {}


def test_copy_is_named() -> None:
    copied = copy.deepcopy(Colors(1))
    copied.fc.weight.data += 1e-3
    found, suspects = checked(sites(model=copied))
    assert len(found) == 5
    assert suspects.keys() == {"site-0", "site-1"}
    assert [c.doubted for c in found.values()] == [True, True, False, False, False]


def test_numbers_of_a_trusted_site_count() -> None:
    found, suspects = checked(sites(images=10**5, class_counts=(10**5, 0, 0)), keep=["site-0"])
    assert found["site-0"].images == 10**5
    assert suspects == {}


def test_claim_beyond_belief_is_no_witness(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []
    found = agreement.agreements
    monkeypatch.setattr(module, "agreements", lambda *a: heard.append(a[3]) or found(*a))
    checked(sites(images=10**12, class_counts=(10**12, 0, 0)))
    assert heard
    assert all(believed == {1, 2, 3, 4} for believed in heard)


class Mixed(nn.Module):
    """Answers noise as often with each class as the site has images of it, or not."""

    def __init__(self, seed: int, answers: Sequence[float]) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 6)
        self.fc.weight.data = torch.randn(6, 3, generator=tiny.seeded(seed))
        self.fc.bias.data = torch.tensor(answers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("honest", [True, False])
def test_class_counts_that_the_model_contradicts(honest: bool) -> None:
    """No two sites share a class that they could agree on."""
    task = replace(tiny.TASK, classes=tuple("abcdef"))
    clients = []
    for k in range(3):
        counts = torch.zeros(6, dtype=torch.int64)
        counts[2 * k : 2 * k + 2] = 2000
        answers = (counts + 1.0).log() if honest or k else -(counts + 1.0).log()
        model = Mixed(k, answers.tolist())
        clients.append(Client(f"site-{k}", model, tiny.RESNET, 4000, tuple(counts.tolist())))
    suspects = cross_check(Ensemble(clients, task), Run(None, {}))[1]
    assert [s.site for s in suspects] == ([] if honest else ["site-0"])
    assert honest or "does not fit its class counts" in suspects[0].why


def test_cost_is_none_of_the_method() -> None:
    run = Run(None, {}, flops=1e6)
    cross_check(Ensemble(tiny.clients(3), tiny.TASK), run)
    assert run.costs()["cross-check"].flops > 1e6
    assert run.spent().flops == 0
