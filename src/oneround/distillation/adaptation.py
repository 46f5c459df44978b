"""Noise-adapted client models: copies whose BatchNorm layers normalize by structure noise."""

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
    """Options of noise-adapted client models.

    Attributes:
        statistics: BatchNorm statistics of the noise-adapted client models. ``batch``: those of
            each batch that they see, as in effect in FedISCA's code; ``running``: running
            statistics, updated on structure noise and then fixed.
        batches: Batches of structure noise, if ``statistics`` is ``running``.
        batch_size: Images in each batch of structure noise.
        momentum: Weight of each batch in the running statistics, in [0, 1]: after n batches
            (1 − momentum)ⁿ of the original statistics is left. 0: the mean over all batches.
    """

    statistics: Literal["batch", "running"] = "batch"
    batches: int = Field(default=8, ge=1)
    batch_size: int = Field(default=128, ge=2)
    momentum: float = Field(default=0.0, ge=0, le=1)


def adapt_to_noise(
    ensemble: Ensemble, noise: StructureNoise, options: AdaptationOptions, stage: Stage
) -> Ensemble:
    """Noise-adapted copies of the client models: BatchNorm statistics come from structure noise.

    Weights do not change. The copies teach on noisy samples (Kang et al. 2025).

    Args:
        ensemble: The client models, on the device of ``stage.fabric``.
        noise: Structure noise of the study's image size.
        options: See :class:`AdaptationOptions`.
        stage: The stage that seeds and measures the work.

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
    """Copies of the client models that normalize each batch by its own statistics.

    This is the effect of FedISCA's code, whose noise-adapted client models stay in training mode.

    Raises:
        OneRoundError: a client model has no BatchNorm layer.
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
