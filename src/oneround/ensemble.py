"""Client models together: how their outputs are combined, and their noise-adapted copies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from oneround.errors import OneRoundError
from oneround.models import batch_norms, require_batch_norm, update_statistics
from oneround.noise import StructureNoise
from oneround.stage import Stage
from oneround.study import Strict

Rule = Literal["auto", "logits", "probabilities", "class-counts"]
"""How client outputs become one; ``auto``: ``class-counts`` where all sites share theirs,
else ``probabilities``."""


def mean_of_logits(logits: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """log softmax(1/K Σ_k z_k), as in FedISCA's code; one overconfident site can rule it."""
    return logits.mean(0).log_softmax(-1)


def mean_of_probabilities(logits: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """log 1/K Σ_k softmax(z_k): every site has one vote."""
    return torch.logsumexp(logits.log_softmax(-1), 0) - torch.tensor(float(len(logits))).log()


def class_count_weighted(logits: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """log of Σ_k w_kc softmax(z_k)_c, normalized over c: who has seen a class decides on it."""
    log_weights = weights.clamp_min(1e-12).log().unsqueeze(1)  # (K, 1, classes)
    return torch.logsumexp(logits.log_softmax(-1) + log_weights, 0).log_softmax(-1)


RULES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "logits": mean_of_logits,
    "probabilities": mean_of_probabilities,
    "class-counts": class_count_weighted,
}
"""Each maps client logits (K, B, classes) and weights (K, classes) to log-probabilities
(B, classes). The rule is applied at temperature 1 and softened afterwards: averaging
probabilities that were softened first comes close to averaging logits."""


class Ensemble(nn.Module):
    """Frozen client models with a combination rule.

    Args:
        models: K networks from (B, C, H, W) to (B, classes); architectures may differ.
        sites: their names.
        class_counts: (K, classes) training images of each class at each site, or ``None``.
        rule: see :data:`Rule`.

    Raises:
        OneRoundError: rule ``class-counts`` without class counts.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        sites: Sequence[str],
        class_counts: torch.Tensor | None = None,
        rule: Rule = "auto",
    ) -> None:
        super().__init__()
        if rule == "auto":
            rule = "probabilities" if class_counts is None else "class-counts"
        if rule == "class-counts" and class_counts is None:
            raise OneRoundError(
                "the rule class-counts needs the class counts of every site.",
                remedy="Use the rule `probabilities`, or ask the sites to share their counts.",
            )
        self.models = nn.ModuleList(models).eval().requires_grad_(False)
        self.models.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.sites = tuple(sites)
        self.class_counts = class_counts
        self.rule: str = rule
        self.register_buffer("weights", _weights(class_counts, len(models)))

    def with_rule(self, rule: Rule) -> Ensemble:
        """The same client models (not copies) with another rule."""
        return Ensemble(list(self.models), self.sites, self.class_counts, rule)

    def client_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs of every client model, (K, B, classes)."""
        return torch.stack([model(x) for model in self.models])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Combined log-probabilities, (B, classes), of network input (B, C, H, W)."""
        return RULES[self.rule](self.client_logits(x).float(), self.weights)

    @property
    def largest_site(self) -> int:
        """Index of the site with the most training images (the first one, if not known)."""
        return 0 if self.class_counts is None else int(self.class_counts.sum(1).argmax())


def _weights(class_counts: torch.Tensor | None, sites: int) -> torch.Tensor:
    """w_kc = n_kc / Σ_k n_kc; equal where nobody has seen the class."""
    if class_counts is None:
        return torch.full((sites, 1), 1 / sites)
    counts = class_counts.float()
    return torch.where(counts.sum(0) > 0, counts / counts.sum(0).clamp_min(1), 1 / sites)


class AdaptationOptions(Strict):
    """How noise-adapted client models are made.

    Attributes:
        statistics: ``running``: BatchNorm's running statistics are updated on noise, then
            fixed; ``batch``: the statistics of whatever batch comes (FedISCA's code in effect).
        batches: noise batches to pass over.
        batch_size: images in each.
        momentum: of the update; after n batches (1 − momentum)ⁿ of the original statistics is
            left. ``0``: replace them by the mean over all batches.
    """

    statistics: Literal["running", "batch"] = "running"
    batches: int = Field(8, ge=1)
    batch_size: int = Field(128, ge=2)
    momentum: float = Field(0.0, ge=0, le=1)


def adapt_to_noise(
    ensemble: Ensemble, noise: StructureNoise, options: AdaptationOptions, stage: Stage
) -> Ensemble:
    """Copies of the client models whose BatchNorm statistics come from structure noise.

    Weights do not change. Kang et al. 2025: the copies teach where samples are noisy.

    Raises:
        OneRoundError: a client model has no BatchNorm layer.
    """
    adapted = copy.deepcopy(ensemble)
    meter = stage.meter()
    for number, (model, site) in enumerate(zip(adapted.models, adapted.sites, strict=True)):
        require_batch_norm(model, site)
        if options.statistics == "batch":
            for layer in batch_norms(model):
                layer.track_running_stats = False
                layer.running_mean = layer.running_var = None
            continue
        generator = stage.generator()  # the same noise for every client
        batches = (
            stage.fabric.to_device(noise.sample(options.batch_size, generator))
            for _ in range(options.batches)
        )
        with meter.step(number):
            update_statistics(model, batches, options.momentum or None)
        stage.tell(number + 1, len(adapted.models))
    stage.cost = meter.cost
    return adapted
