"""Noise-adapted client models: copies whose BatchNorm normalizes by noise."""

from __future__ import annotations

import copy
from typing import Literal

from pydantic import Field
from torch import nn

from oneround.data.structure_noise import StructureNoise
from oneround.models.batch_norm import (
    batch_norms,
    require_batch_norm,
    synchronize_batch_norms,
    update_statistics,
)
from oneround.models.ensemble import Ensemble
from oneround.runs.stage import Stage
from oneround.schema import Strict


class AdaptationOptions(Strict):
    """How noise-adapted client models are made.

    Attributes:
        statistics: ``batch``: the statistics of whatever batch comes (FedISCA's code in
            effect); ``running``: BatchNorm's running statistics are updated on noise, then fixed.
        batches: for ``running``: noise batches to pass over.
        batch_size: images in each.
        momentum: of the update; after n batches (1 − momentum)ⁿ of the original statistics is
            left. ``0``: replace them by the mean over all batches.
    """

    statistics: Literal["batch", "running"] = "batch"
    batches: int = Field(default=8, ge=1)
    batch_size: int = Field(default=128, ge=2)
    momentum: float = Field(default=0.0, ge=0, le=1)


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
    for number, (model, client) in enumerate(zip(adapted.models, adapted.clients, strict=True)):
        require_batch_norm(model, client.site)
        if options.statistics == "batch":
            _take_batch_statistics(model)
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


def with_batch_statistics(ensemble: Ensemble) -> Ensemble:
    """Copies of the client models that normalize every batch by its own statistics.

    This is what FedISCA's noise-adapted client models come to: they stay in training mode.
    """
    adapted = copy.deepcopy(ensemble)
    for model, client in zip(adapted.models, adapted.clients, strict=True):
        require_batch_norm(model, client.site)
        _take_batch_statistics(model)
    return adapted


def _take_batch_statistics(model: nn.Module) -> None:
    layers = list(batch_norms(model))
    synchronize_batch_norms(model)
    for layer in layers:
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = None
