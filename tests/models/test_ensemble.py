from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from oneround.errors import OneRoundError
from oneround.models.ensemble import RULES, Client, Ensemble, prior_corrected
from tests.tiny import DENSENET, IMAGE, RESNET, TASK, clients, equal, images, network, seeded


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def combined_by_hand(
    rule: str, logits: np.ndarray, weights: np.ndarray, votes: np.ndarray | None = None
) -> np.ndarray:
    """Probabilities (B, classes), with loops."""
    votes = np.ones(len(logits)) if votes is None else votes
    sites, batch, classes = logits.shape
    result = np.zeros((batch, classes))
    for b in range(batch):
        if rule == "logits":
            mean = sum(votes[k] * logits[k, b] for k in range(sites)) / votes.sum()
            result[b] = softmax(mean)
            continue
        for k in range(sites):
            share = 1 / sites if rule == "probabilities" else weights[k]
            result[b] += votes[k] * share * softmax(logits[k, b])
        result[b] /= result[b].sum()
    return result


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_rules_against_loops(rule: str, scale: float) -> None:
    rng = np.random.default_rng(0)
    logits = scale * rng.standard_normal((3, 5, 4))
    counts = rng.integers(1, 50, (3, 4))
    weights = counts / counts.sum(0)
    for votes in (np.ones(3), rng.uniform(0.1, 2, 3)):
        tensors = [torch.tensor(array) for array in (logits, weights, votes)]
        found = RULES[rule](*tensors).exp().numpy()
        assert np.allclose(found, combined_by_hand(rule, logits, weights, votes), atol=1e-9)


def test_equal_votes_change_no_bit() -> None:
    before = {
        "logits": lambda z, w: z.mean(0).log_softmax(-1),
        "probabilities": lambda z, w: (
            torch.logsumexp(z.log_softmax(-1), 0) - torch.tensor(float(len(z))).log()
        ),
        "class-counts": lambda z, w: torch.logsumexp(
            z.log_softmax(-1) + w.clamp_min(1e-12).log().unsqueeze(1), 0
        ).log_softmax(-1),
    }
    for sites in (1, 2, 3, 5, 7, 20):
        logits, weights = torch.randn(sites, 33, 8) * 9, torch.rand(sites, 8)
        for rule, formula in before.items():
            found = RULES[rule](logits, weights, torch.ones(sites))
            assert torch.equal(found, formula(logits, weights)), (rule, sites)


@pytest.mark.parametrize("rule", RULES)
def test_votes_of_nothing(rule: str) -> None:
    logits, weights = torch.randn(3, 5, 4), torch.full((3, 4), 1 / 3)
    alone = RULES[rule](logits, weights, torch.tensor([0.0, 1.0, 0.0]))
    assert torch.allclose(alone, logits[1].log_softmax(-1), atol=1e-5), "only one counts"
    nobody, all_alike = (RULES[rule](logits, weights, v) for v in (torch.zeros(3), torch.ones(3)))
    assert torch.allclose(nobody, all_alike, atol=1e-5), "all count the same"


def test_forward_combines_the_outputs_of_the_client_models() -> None:
    members = clients(3)
    x = IMAGE.normalize(images(4).pixels())
    with torch.no_grad():
        logits = np.stack([client.model(x).double().numpy() for client in members])
        for rule in RULES:
            found = Ensemble(members, TASK, rule)(x)
            weights = Ensemble(members, TASK, rule).weights.double().numpy()
            counts = np.array([client.class_counts for client in members]) + 1
            priors = counts / counts.sum(1, keepdims=True)
            corrected = logits - np.log(priors)[:, None] if rule == "prior-corrected" else logits
            expected = combined_by_hand(rule, corrected, weights)
            assert np.allclose(found.exp().numpy(), expected, atol=1e-5)


def test_weights_are_shares_of_each_class() -> None:
    one = Client("a", nn.Identity(), RESNET, 40, (10, 0, 0))
    two = Client("b", nn.Identity(), RESNET, 40, (30, 5, 0))
    expected = [[0.25, 0.0, 0.5], [0.75, 1.0, 0.5]]  # nobody has the last class
    assert Ensemble([one, two], TASK).weights.tolist() == expected


def test_a_site_without_images_of_a_class_has_no_say_in_it() -> None:
    weights = torch.tensor([[0.0, 0.5], [1.0, 0.5]])
    logits = torch.tensor([[[8.0, 0.0]], [[0.0, 0.0]]])  # the first is sure of what it cannot know
    combined = RULES["class-counts"](logits, weights, torch.ones(2)).exp()
    assert combined[0, 0] == pytest.approx(0.5 / (0.5 + 0.25), rel=1e-3)
    nobody = RULES["class-counts"](logits, torch.zeros(2, 2), torch.ones(2))
    assert nobody.isfinite().all()


def test_auto_depends_on_what_sites_tell() -> None:
    members = clients(2)
    assert Ensemble(members, TASK).rule == "class-counts"
    members[1] = replace(members[1], class_counts=None)
    assert Ensemble(members, TASK).rule == "probabilities"
    for rule in ("class-counts", "prior-corrected"):
        with pytest.raises(
            OneRoundError, match=f"{rule} needs the class counts of site-1"
        ) as caught:
            Ensemble(members, TASK, rule)
        assert "probabilities" in caught.value.remedy
    assert Ensemble(members, TASK, "logits").rule == "logits"


def test_architectures_may_differ() -> None:
    other = Client("other", network(1, DENSENET), DENSENET, 10, (1, 1, 1))
    mixed = Ensemble([*clients(1), other], TASK)
    assert mixed(torch.randn(2, *IMAGE.shape)).shape == (2, 3)


def test_client_models_are_frozen_and_in_eval_mode() -> None:
    ensemble = Ensemble([Client("a", network().train(), RESNET, 10)], TASK)
    assert not any(module.training for module in ensemble.models.modules())
    assert not any(p.requires_grad for p in ensemble.parameters())


def test_what_is_given_stays_as_it_is() -> None:
    """Strided 1×1 convolutions are replaced and weights reordered in copies alone."""
    model = network().train()
    layers = {name: type(layer) for name, layer in model.named_modules()}
    strides = {name: p.stride() for name, p in model.named_parameters()}
    ensemble = Ensemble([Client("a", model, RESNET, 10)], TASK)
    assert {name: type(layer) for name, layer in model.named_modules()} == layers
    assert {name: p.stride() for name, p in model.named_parameters()} == strides
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert {type(m) for m in ensemble.models.modules()} - {nn.ModuleList} != set(layers.values())


def test_with_rule_shares_the_client_models() -> None:
    ensemble = Ensemble(clients(2), TASK, "logits")
    other = ensemble.with_rule("probabilities")
    assert other.models[0] is ensemble.models[0]
    assert (ensemble.rule, other.rule) == ("logits", "probabilities")


def test_votes_are_those_of_one_ensemble() -> None:
    ensemble = Ensemble(clients(2), TASK, "logits")
    assert ensemble.votes.tolist() == [1, 1]
    x = torch.randn(2, *IMAGE.shape, generator=seeded())
    ensemble.votes[0] = 0
    assert torch.allclose(ensemble(x), ensemble.models[1](x).log_softmax(-1), atol=1e-5)
    assert ensemble.with_rule("logits").votes.tolist() == [1, 1]


def test_prior_correction_divides_by_the_class_mix() -> None:
    """With one image added to every class; all that was in the model otherwise is left."""
    members = [
        *clients(2),  # class counts (0, 3, 7) and (1, 3, 16)
        Client("densely", network(5, DENSENET), DENSENET, 9, (3, 3, 3)),
        Client("secretive", network(6), RESNET, 9),
    ]
    before = Ensemble(members, TASK)
    x = IMAGE.normalize(images(5).pixels())
    logits = before.client_logits(x)
    priors = torch.tensor([[1, 4, 8], [2, 4, 17], [4, 4, 4], [1, 1, 1]], dtype=torch.float32)
    after = prior_corrected(before)
    expected = logits.softmax(-1) / (priors / priors.sum(1, keepdim=True)).unsqueeze(1)
    expected /= expected.sum(-1, keepdim=True)
    assert torch.allclose(after.client_logits(x).softmax(-1), expected, atol=1e-6)
    assert torch.equal(before.client_logits(x), logits), "the client models stay as they are"
    assert after.rule == before.rule
    assert after.clients[3].model is not before.clients[3].model
    assert equal(after.clients[3].model, before.clients[3].model)


def test_a_balanced_loss_has_taken_the_class_mix_out_already() -> None:
    """All but that there are classes which the site has no image of."""
    [client] = clients(1)
    before = Ensemble([replace(client, class_counts=(900, 99, 0), balanced=True)], TASK)
    prior = torch.tensor([500.5, 500.5, 1]) / 1002
    assert torch.allclose(before.log_priors, prior.log())
    x = IMAGE.normalize(images(5).pixels())
    expected = before.client_logits(x) - prior.log()
    assert torch.allclose(prior_corrected(before).client_logits(x), expected, atol=1e-5)


def test_corrected_models_and_the_corrected_rule_are_one() -> None:
    before = Ensemble(clients(3), TASK, "prior-corrected")
    after = prior_corrected(before)
    x = IMAGE.normalize(images(5).pixels())
    assert after.rule == "class-counts", "nothing is taken out twice"
    assert torch.allclose(after(x), before(x), atol=1e-6)
    asked = before.forward(x, (0, 2)), after.forward(x, (0, 2))
    assert torch.allclose(*asked, atol=1e-6)


def test_a_corrected_site_does_not_vote_against_what_it_has_not_seen() -> None:
    """Two sites of two classes each, with exact posteriors of known densities."""
    likelihood = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])  # p(x|c), x by c

    class Bayes(nn.Module):
        def __init__(self, prior: list[float]) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.layer.weight.data = likelihood.log()
            self.layer.bias.data = torch.tensor(prior).log()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.layer(x.flatten(1)[:, :3])
            return logits

    counts = [(900, 99, 0), (0, 99, 900)]
    members = [
        Client(f"site-{k}", Bayes([(n + 1) / 1002 for n in c]), RESNET, 999, c)
        for k, c in enumerate(counts)
    ]
    x = torch.zeros(3, *IMAGE.shape)
    x.flatten(1)[:, :3] = torch.eye(3)
    plain = Ensemble(members, TASK, "class-counts")
    right = likelihood / likelihood.sum(1, keepdim=True)  # where all classes are equally frequent
    assert plain(x).exp()[1, 1] < 0.5, "both sites take the rare class for their frequent one"
    assert torch.allclose(prior_corrected(plain)(x).exp(), right, atol=1e-6)


def test_outputs_that_are_not_finite_name_the_site() -> None:
    """Also where they are finite for other images."""

    class Sometimes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = x.mean((2, 3))
            return torch.where(z > 0, z, torch.nan)

    members = clients(2)
    ensemble = Ensemble([members[0], replace(members[1], model=Sometimes())], TASK, "probabilities")
    bright = torch.ones(1, *IMAGE.shape)
    assert ensemble(bright).isfinite().all()
    with pytest.raises(OneRoundError, match=r"client model of site-1 .*--exclude site-1"):
        ensemble(-bright)
    ensemble(torch.nan * bright)  # no client model is to blame
