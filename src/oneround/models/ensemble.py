"""Client models together: how their outputs are combined, and their noise-adapted copies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from oneround.errors import OneRoundError
from oneround.models.inference import folded, inference_copy, last_layer
from oneround.study import ArchitectureSpec, Task

Rule = Literal["auto", "logits", "probabilities", "class-counts", "prior-corrected"]
"""How client outputs become one; ``auto``: ``class-counts`` where all sites share theirs,
else ``probabilities``. ``prior-corrected`` is ``class-counts`` after :func:`prior_corrected`."""


def mean_of_logits(
    logits: torch.Tensor, weights: torch.Tensor, votes: torch.Tensor
) -> torch.Tensor:
    """log softmax(Σ_k v_k z_k / Σ_k v_k), as in FedISCA's code where all votes are 1; one
    overconfident site can rule it."""
    votes = votes.clamp_min(_LEAST).view(-1, 1, 1)
    return ((votes * logits).sum(0) / votes.sum()).log_softmax(-1)


def mean_of_probabilities(
    logits: torch.Tensor, weights: torch.Tensor, votes: torch.Tensor
) -> torch.Tensor:
    """log(Σ_k v_k softmax(z_k) / Σ_k v_k): where all votes are 1 every site counts the same."""
    votes = votes.clamp_min(_LEAST).view(-1, 1, 1)
    return torch.logsumexp(logits.log_softmax(-1) + votes.log(), 0) - votes.sum().log()


def class_count_weighted(
    logits: torch.Tensor, weights: torch.Tensor, votes: torch.Tensor
) -> torch.Tensor:
    """log of Σ_k v_k w_kc softmax(z_k)_c, normalized over c: who has seen a class decides on
    it."""
    votes = votes.clamp_min(_LEAST).view(-1, 1, 1)
    log_weights = weights.clamp_min(_LEAST).log().unsqueeze(1) + votes.log()  # (K, 1, classes)
    return torch.logsumexp(logits.log_softmax(-1) + log_weights, 0).log_softmax(-1)


_LEAST = 1e-12  # of a weight and of a vote: where all are 0, all count the same

RULES: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "logits": mean_of_logits,
    "probabilities": mean_of_probabilities,
    "class-counts": class_count_weighted,
    "prior-corrected": class_count_weighted,  # of corrected logits, see Ensemble.combine
}
"""Each maps client logits (K, B, classes), weights (K, classes) and votes v (K,) to
log-probabilities (B, classes). The rule is applied at temperature 1 and softened afterwards:
averaging probabilities that were softened first comes close to averaging logits."""


@dataclass(frozen=True)
class Client:
    """A client model, and what is known of the site that trained it.

    Attributes:
        site: name of the site.
        model: from (B, C, H, W) to logits (B, classes).
        architecture: its name and arguments.
        images: number of training images.
        class_counts: training images of each class, or ``None`` if the site withholds them.
        loss: training loss of these weights at the site, or ``None`` if it is not known.
        balanced: it was trained with classes weighted inverse to their frequency, so that all
            classes of its site count the same to it.
    """

    site: str
    model: nn.Module
    architecture: ArchitectureSpec
    images: int
    class_counts: tuple[int, ...] | None = None
    loss: float | None = None
    balanced: bool = False


class Ensemble(nn.Module):
    """Frozen client models with a combination rule.

    Args:
        clients: K client models; architectures may differ. They are copied, so that what is
            given stays as it is.
        task: what they are for.
        rule: see :data:`Rule`.

    Attributes:
        task: what they are for.
        weights: share of each client in every class, (K, classes), by class counts.
        log_priors: log π_kc, the class mix that each client model has learned, (K, classes), with
            one image added to every class; equal where a site withholds its class counts.
        votes: how much each client counts, (K,), at least 0; 1 unless a method learns them.

    Raises:
        OneRoundError: a rule that needs class counts, and a site withholds its own.
    """

    weights: torch.Tensor
    log_priors: torch.Tensor
    votes: torch.Tensor

    def __init__(self, clients: Sequence[Client], task: Task, rule: Rule = "auto") -> None:
        super().__init__()
        copies = [replace(client, model=inference_copy(client.model)) for client in clients]
        self._assemble(copies, task, rule)

    def _assemble(self, clients: Sequence[Client], task: Task, rule: Rule) -> None:
        withheld = [client.site for client in clients if client.class_counts is None]
        if rule == "auto":
            rule = "probabilities" if withheld else "class-counts"
        if rule in ("class-counts", "prior-corrected") and withheld:
            raise OneRoundError(
                f"the rule {rule} needs the class counts of {', '.join(withheld)}.",
                remedy="Use the rule `probabilities`, or ask the sites to share their counts.",
            )
        self.clients, self.task = tuple(clients), task
        self.rule: Rule = rule
        self.models = nn.ModuleList(client.model for client in clients).eval()
        class_counts = [client.class_counts for client in clients]
        self.register_buffer("weights", _weights(class_counts))
        self.register_buffer("log_priors", _log_priors(clients))
        self.register_buffer("votes", torch.ones(len(clients)))

    def of(self, clients: Sequence[Client], rule: Rule) -> Ensemble:
        """These client models (not copies of them) with a rule, on the device of this ensemble."""
        other = Ensemble.__new__(Ensemble)
        nn.Module.__init__(other)
        other._assemble(clients, self.task, rule)
        return other.eval().to(self.weights.device)

    def with_rule(self, rule: Rule) -> Ensemble:
        """The same client models (not copies) with another rule; all votes are 1."""
        return self.of(self.clients, rule)

    def folded(self) -> Ensemble:
        """A faster copy for inference alone; see :func:`oneround.models.inference.folded`."""
        copied = Ensemble(
            [replace(client, model=folded(client.model)) for client in self.clients],
            self.task,
            self.rule,
        ).to(self.weights.device)
        copied.votes = self.votes  # the same votes, also when they change
        return copied

    def client_logits(self, x: torch.Tensor, asked: Sequence[int] | None = None) -> torch.Tensor:
        """Outputs of every client model, or of those that are asked, (K, B, classes)."""
        asked = range(len(self.models)) if asked is None else asked
        return torch.stack([self.models[k](x) for k in asked])

    def forward(self, x: torch.Tensor, asked: Sequence[int] | None = None) -> torch.Tensor:
        """Combined log-probabilities, (B, classes), of network input (B, C, H, W).

        Where a random part of the clients is ``asked``, the sum that the rule takes over clients
        is estimated without bias, but for its normalization over classes.
        """
        return self.combine(self.client_logits(x, asked).float(), asked)

    def combine(
        self,
        logits: torch.Tensor,
        asked: Sequence[int] | None = None,
        votes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Log-probabilities, (B, classes), from the outputs of the client models; with ``votes``
        (K,) in place of its own."""
        chosen = slice(None) if asked is None else list(asked)
        votes = self.votes if votes is None else votes
        if self.rule == "prior-corrected":
            logits = logits - self.log_priors[chosen].unsqueeze(1)
        return RULES[self.rule](logits, self.weights[chosen], votes[chosen])

    def draw(self, count: int, generator: torch.Generator) -> tuple[int, ...] | None:
        """``count`` different clients at random; ``None``, which is all of them, for 0."""
        clients = len(self.clients)
        if not 0 < count < clients:
            return None
        return tuple(sorted(torch.randperm(clients, generator=generator)[:count].tolist()))


def prior_corrected(ensemble: Ensemble) -> Ensemble:
    """Copies of the client models that answer as if their site had every class equally often.

    The class mix π_k of a site is in its model: p_k(c|x) ∝ p(x|c)·π_kc. The bias of the last
    layer takes −log π_kc, so that softmax(z_k − log π_k) ∝ p(x|c) (Saerens et al., *Neural
    Computation* 2002; Menon et al., ICLR 2021). Two things change: a frequent class is not
    preferred, and a site that has hardly seen a class no longer votes against it. One image is
    added to every class, for those that a site has none of. Where a site withholds its class
    counts, its model stays as it is; where it was trained with weighted classes, those that it has are
    equally frequent to it. The rule ``prior-corrected`` becomes ``class-counts``.

    Raises:
        OneRoundError: a client model does not end with a fully connected layer.
    """
    clients = []
    for client, log_prior in zip(ensemble.clients, ensemble.log_priors, strict=True):
        model = copy.deepcopy(client.model)
        if client.class_counts is not None:
            layer = last_layer(model, ensemble.task.image, len(log_prior))
            layer.bias.data -= log_prior.to(layer.bias.device)
        clients.append(replace(client, model=model))
    rule: Rule = "class-counts" if ensemble.rule == "prior-corrected" else ensemble.rule
    return ensemble.of(clients, rule)


def _weights(class_counts: Sequence[tuple[int, ...] | None]) -> torch.Tensor:
    """w_kc = n_kc / Σ_k n_kc; equal where nobody has seen the class, or a site does not say."""
    if not all(class_counts):
        return torch.full((len(class_counts), 1), 1 / len(class_counts))
    counts = torch.tensor(class_counts, dtype=torch.float32)
    return torch.where(counts.sum(0) > 0, counts / counts.sum(0).clamp_min(1), 1 / len(counts))


def _log_priors(clients: Sequence[Client]) -> torch.Tensor:
    """log((n_kc + 1) / Σ_c (n_kc + 1)); 0 where a site does not say."""
    known = [client.class_counts for client in clients]
    classes = max((len(counts) for counts in known if counts), default=1)
    images = torch.tensor([counts or (0,) * classes for counts in known], dtype=torch.float32)
    equal = images.sum(1, keepdim=True) / (images > 0).sum(1, keepdim=True).clamp_min(1)
    balanced = torch.tensor([client.balanced for client in clients]).unsqueeze(1)
    shares = torch.where(balanced & (images > 0), equal, images) + 1
    secret = torch.tensor([counts is None for counts in known]).unsqueeze(1)
    return (shares / shares.sum(1, keepdim=True)).log().masked_fill(secret, 0.0)


def average(ensemble: Ensemble) -> nn.Module:
    """Weights and BatchNorm statistics averaged by the number of training images: FedAvg's
    aggregation (McMahan et al., AISTATS 2017).

    Raises:
        OneRoundError: the architectures differ.
    """
    architectures = {str(client.architecture) for client in ensemble.clients}
    if len(architectures) > 1:
        raise OneRoundError(
            f"weights of different architectures cannot be averaged: "
            f"{', '.join(sorted(architectures))}.",
            remedy="Use a method that distills, such as kang2025, and starts elsewhere.",
        )
    images = [client.images for client in ensemble.clients]
    model = copy.deepcopy(ensemble.models[0])
    model.load_state_dict(weighted_mean([m.state_dict() for m in ensemble.models], images))
    return model.eval()


def weighted_mean(
    states: Sequence[dict[str, torch.Tensor]], weights: Sequence[float]
) -> dict[str, torch.Tensor]:
    """Σ_k w_k·state_k / Σ_k w_k, tensor by tensor, in double precision and back, on the CPU: not
    every device has doubles."""
    share = torch.tensor([float(weight) for weight in weights])
    share = share / share.sum()
    mean = {}
    for name, tensor in states[0].items():
        total = sum(w * state[name].cpu().double() for w, state in zip(share, states, strict=True))
        mean[name] = torch.as_tensor(total).to(tensor.dtype)
    return mean
