"""FedAvg: the client models averaged into one network, in one round or in many.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
AISTATS 2017, algorithm 1: every round all sites train the same network on their own images, and
its weights become θ = Σ_k n_k/n · θ_k, BatchNorm statistics included.

One round is the average of the submissions. ``rounds`` above one shows what more communication
would buy. It needs the images of the sites again and again, so it exists in simulations only,
and starts from the weights that all sites of the study start from. Every site takes part in
every round; the rate falls along a cosine over the rounds, for which the paper has a constant.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import nn

from oneround import models
from oneround.data import ImageSet
from oneround.methods import GlobalModel
from oneround.models.ensemble import Ensemble, average, weighted_mean
from oneround.models.inference import to_fast_layout
from oneround.runs.loop import Loop
from oneround.runs.optimization import learning_rate
from oneround.runs.run import Run
from oneround.runs.stage import Stage, derived_seed
from oneround.schema import Strict
from oneround.site.training import train_epoch
from oneround.study import Study

NEEDS = "One architecture for all sites; for many rounds a simulation."


class Options(Strict):
    """How often the sites talk to each other.

    Attributes:
        rounds: 1: the submissions are averaged; more: in a simulation only.
        epochs: that every site trains in each of many rounds.
        learning_rate: of SGD in the first of many rounds.
    """

    rounds: int = Field(default=1, ge=1)
    epochs: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=0.05, gt=0)


PRESETS: dict[str, Strict] = {"quick": Options(), "paper": Options()}


def fedavg(ensemble: Ensemble, study: Study, run: Run, options: Options) -> GlobalModel:
    """The average after the last round."""
    model, architecture = average(ensemble), ensemble.clients[0].architecture
    if options.rounds == 1:
        return GlobalModel(model, (architecture,))
    sites = {
        site: train for site, (train, _) in run.images_of_sites("FedAvg of many rounds").items()
    }
    start = derived_seed(study.seed, "initialization")
    model = models.build(architecture, study.image, len(study.classes), start)
    to_fast_layout(model)
    stage = run.stage("rounds")
    model = stage.fabric.to_device(model)
    loop = Loop(stage, options.rounds, {"model": model})
    for number in loop:
        rate = learning_rate("cosine", options.learning_rate, number - 1, options.rounds)
        _one_round(model, sites, study, options.epochs, rate, stage, number, loop)
        loop.observe(model)
    sent = 2 * options.rounds * len(sites) * models.size_in_bytes(model)
    return GlobalModel(model.cpu().eval(), (architecture,), bytes_sent=sent)


def _one_round(
    model: nn.Module,
    sites: Mapping[str, ImageSet],
    study: Study,
    epochs: int,
    rate: float,
    stage: Stage,
    number: int,
    loop: Loop,
) -> None:
    """Every site trains a copy of ``model``, which becomes their average."""
    states, losses = [], []
    for site, train in sites.items():
        local = copy.deepcopy(model)
        spec = study.training
        optimizer = torch.optim.SGD(
            local.parameters(),
            lr=rate,
            momentum=spec.momentum,
            weight_decay=spec.weight_decay,
            nesterov=spec.momentum > 0,
        )
        wrapped = stage.fabric.setup(local, optimizer)
        for epoch in range(epochs):
            draw = stage.generator(site, number, epoch)
            loss = train_epoch(wrapped[0], wrapped[1], None, study, train, stage, draw, loop.meter)
        states.append(local.state_dict())
        losses.append(loss)
    model.load_state_dict(weighted_mean(states, [len(train) for train in sites.values()]))
    stage.curve.append({"round": number, "loss": sum(losses) / len(losses), "learning_rate": rate})
