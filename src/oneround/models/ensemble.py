"""Ensembles of client models: rules that combine their outputs, prior correction, averages."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from oneround.errors import OneRoundError
from oneround.models.inference import folded, inference_copy, last_layer
from oneround.study import ArchitectureSpec, Task

Rule = Literal["auto", "logits", "probabilities", "class-counts", "prior-corrected"]
"""Rule that combines the outputs of the client models. ``auto``: ``class-counts`` if all sites
share their class counts, else ``probabilities``. ``prior-corrected``: ``class-counts`` on logits
from which the log class mix of each site is subtracted, see :func:`prior_corrected`."""


def mean_of_logits(
    logits: torch.Tensor, weights: torch.Tensor, votes: torch.Tensor
) -> torch.Tensor:
    """log softmax(Σ_k v_k z_k / Σ_k v_k); with all votes 1, the rule in FedISCA's code. One
    overconfident site can dominate it. Arguments and result: see :data:`RULES`."""
    votes = votes.clamp_min(_LEAST).view(-1, 1, 1)
    return ((votes * logits).sum(0) / votes.sum()).log_softmax(-1)


def mean_of_probabilities(
    logits: torch.Tensor, weights: torch.Tensor, votes: torch.Tensor
) -> torch.Tensor:
    """log(Σ_k v_k softmax(z_k) / Σ_k v_k): with all votes 1, every site counts the same.
    Arguments and result: see :data:`RULES`."""
    votes = votes.clamp_min(_LEAST).view(-1, 1, 1)
    return torch.logsumexp(logits.log_softmax(-1) + votes.log(), 0) - votes.sum().log()


def class_count_weighted(
    logits: torch.Tensor, weights: torch.Tensor, votes: torch.Tensor
) -> torch.Tensor:
    """log of Σ_k v_k w_kc softmax(z_k)_c, normalized over c: the sites with images of a class
    decide on it. Arguments and result: see :data:`RULES`."""
    votes = votes.clamp_min(_LEAST).view(-1, 1, 1)
    log_weights = weights.clamp_min(_LEAST).log().unsqueeze(1) + votes.log()  # (K, 1, classes)
    return torch.logsumexp(logits.log_softmax(-1) + log_weights, 0).log_softmax(-1)


_LEAST = 1e-12  # smallest weight and vote: if all are 0, all count the same

RULES: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "logits": mean_of_logits,
    "probabilities": mean_of_probabilities,
    "class-counts": class_count_weighted,
    "prior-corrected": class_count_weighted,  # of corrected logits, see Ensemble.combine
}
"""Combination rules by name. Each maps client logits z, (K, B, classes), weights w, (K, classes),
and votes v, (K,), to log-probabilities, (B, classes). A rule is applied at temperature 1, and its
result is softened afterwards: averaging softened probabilities is close to averaging logits."""


@dataclass(frozen=True)
class Client:
    """A client model, and what its submission says of the site that trained it.

    Attributes:
        site: Name of the site.
        model: Network from (B, C, H, W) to logits (B, classes).
        architecture: Name and arguments of the network.
        images: Number of training images.
        class_counts: Training images of each class, or ``None`` if the site withholds them.
        loss: Training loss of these weights at the site, or ``None`` if it is not known.
        balanced: Whether the site weighted classes inversely to their frequency in training, so
            that all classes it has count the same.
        start: Whether a student that starts from a client model starts from this one, whatever
            numbers say.
        doubted: Whether the cross-check doubts it, so that a student does not start from it.
    """

    site: str
    model: nn.Module
    architecture: ArchitectureSpec
    images: int
    class_counts: tuple[int, ...] | None = None
    loss: float | None = None
    balanced: bool = False
    start: bool = False
    doubted: bool = False


class Ensemble(nn.Module):
    """Frozen client models with a combination rule.

    Args:
        clients: K client models; architectures may differ. They are copied, and the originals
            stay as they are.
        task: Image size and classes.
        rule: See :data:`Rule`.

    Attributes:
        task: Image size and classes.
        weights: Share of each client in the images of each class, (K, classes).
        log_priors: log π_kc, the log of the class mix that each client model has learned,
            (K, classes), with one image added to every class; 0 if a site withholds its class
            counts.
        votes: Weight of each client, (K,), at least 0; 1 unless a method learns it.

    Raises:
        OneRoundError: the rule needs class counts, and a site withholds its class counts.
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
                remedy="Use the rule `probabilities`, or ask these sites for their class counts.",
            )
        self.clients, self.task = tuple(clients), task
        self.rule: Rule = rule
        self.models = nn.ModuleList(client.model for client in clients).eval()
        class_counts = [client.class_counts for client in clients]
        self.register_buffer("weights", _weights(class_counts))
        self.register_buffer("log_priors", _log_priors(clients))
        self.register_buffer("votes", torch.ones(len(clients)))

    def of(self, clients: Sequence[Client], rule: Rule) -> Ensemble:
        """An ensemble of ``clients`` (not of copies) with ``rule``, on the device of this one."""
        other = Ensemble.__new__(Ensemble)
        nn.Module.__init__(other)
        other._assemble(clients, self.task, rule)
        return other.eval().to(self.weights.device)

    def with_rule(self, rule: Rule) -> Ensemble:
        """An ensemble of the same client models (not of copies) with another rule and all votes 1.

        Raises:
            OneRoundError: the rule needs class counts, and a site withholds its class counts.
        """
        return self.of(self.clients, rule)

    def folded(self) -> Ensemble:
        """A faster copy, for inference only; see :func:`oneround.models.inference.folded`."""
        copied = Ensemble(
            [replace(client, model=folded(client.model)) for client in self.clients],
            self.task,
            self.rule,
        ).to(self.weights.device)
        copied.votes = self.votes  # the same votes, also when they change
        return copied

    def client_logits(self, x: torch.Tensor, asked: Sequence[int] | None = None) -> torch.Tensor:
        """Logits, (K, B, classes), of all client models, or of those whose indices are ``asked``,
        for network input (B, C, H, W).

        Raises:
            OneRoundError: some are NaN or infinite, and the input is not; it names the site.
        """
        asked = range(len(self.models)) if asked is None else asked
        logits = torch.stack([self.models[k](x) for k in asked])
        if not logits.isfinite().all() and x.isfinite().all():
            finite = logits.isfinite().flatten(1).all(1).tolist()
            raise not_finite(
                self.clients[k] for k, fine in zip(asked, finite, strict=True) if not fine
            )
        return logits

    def forward(self, x: torch.Tensor, asked: Sequence[int] | None = None) -> torch.Tensor:
        """Combined log-probabilities, (B, classes), for network input (B, C, H, W).

        If a random subset of the clients is ``asked``, the rule's sum over clients is estimated
        without bias, apart from its normalization over classes.
        """
        return self.combine(self.client_logits(x, asked).float(), asked)

    def combine(
        self,
        logits: torch.Tensor,
        asked: Sequence[int] | None = None,
        votes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Log-probabilities, (B, classes), from client logits, (K, B, classes).

        Args:
            logits: Logits of all client models, or of those that are ``asked``.
            asked: Indices of the clients; ``None``: all.
            votes: Weight of each client, (K,), in place of the ensemble's own.
        """
        chosen = slice(None) if asked is None else list(asked)
        votes = self.votes if votes is None else votes
        if self.rule == "prior-corrected":
            logits = logits - self.log_priors[chosen].unsqueeze(1)
        return RULES[self.rule](logits, self.weights[chosen], votes[chosen])

    def draw(self, count: int, generator: torch.Generator) -> tuple[int, ...] | None:
        """Sorted indices of ``count`` different clients, sampled at random; ``None``, which means
        all, if ``count`` is 0 or at least their number."""
        clients = len(self.clients)
        if not 0 < count < clients:
            return None
        return tuple(sorted(torch.randperm(clients, generator=generator)[:count].tolist()))


def not_finite(clients: Iterable[Client]) -> OneRoundError:
    """The error that names the sites whose client models have outputs that are NaN or infinite."""
    sites = [client.site or "an unnamed site" for client in clients]
    return OneRoundError(
        f"the client model of {', '.join(sites)} answers some images with NaN or infinity.",
        remedy="Ask for another submission, or start again in a new RUN folder with "
        + " ".join(f"--exclude {site}" for site in sites)
        + ".",
    )


def prior_corrected(ensemble: Ensemble) -> Ensemble:
    """An ensemble of experts: copies of the client models that answer as if all classes were
    equally frequent at their site.

    The class mix π_k of a site is in its model: p_k(c|x) ∝ p(x|c)·π_kc. Adding −log π_kc to the
    bias of the last layer gives softmax(z_k − log π_k) ∝ p(x|c) (Saerens et al., *Neural
    Computation* 2002; Menon et al., ICLR 2021). This has two effects: a frequent class is not
    preferred, and a site with hardly any image of a class no longer votes against it. One image
    is added to every class, since a site may have none. If a site withholds its class counts, its
    model stays as it is; if it weighted classes in training, the classes it has count as equally
    frequent. The rule ``prior-corrected`` becomes ``class-counts``.

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
    """w_kc = n_kc / Σ_k n_kc, (K, classes); equal for a class that no site has, and, as (K, 1), for
    all classes if a site withholds its class counts."""
    if not all(class_counts):
        return torch.full((len(class_counts), 1), 1 / len(class_counts))
    counts = torch.tensor(class_counts, dtype=torch.float32)
    return torch.where(counts.sum(0) > 0, counts / counts.sum(0).clamp_min(1), 1 / len(counts))


def _log_priors(clients: Sequence[Client]) -> torch.Tensor:
    """log((n_kc + 1) / Σ_c (n_kc + 1)), (K, classes); 0 if a site withholds its class counts."""
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
            remedy="Use a method that distills and does not start from the average, such as "
            "kang2025.",
        )
    images = [client.images for client in ensemble.clients]
    model = copy.deepcopy(ensemble.models[0])
    model.load_state_dict(weighted_mean([m.state_dict() for m in ensemble.models], images))
    return model.eval()


def weighted_mean(
    states: Sequence[dict[str, torch.Tensor]], weights: Sequence[float]
) -> dict[str, torch.Tensor]:
    """Σ_k w_k·state_k / Σ_k w_k for each tensor of the states, by name.

    Computed in double precision on the CPU, since not every device has it; types stay the same.
    """
    share = torch.tensor([float(weight) for weight in weights])
    share = share / share.sum()
    mean = {}
    for name, tensor in states[0].items():
        total = sum(w * state[name].cpu().double() for w, state in zip(share, states, strict=True))
        mean[name] = torch.as_tensor(total).to(tensor.dtype)
    return mean
