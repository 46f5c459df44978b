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
import itertools

from pydantic import Field
from torch import nn

from oneround import models
from oneround.methods import SimulatedSites
from oneround.model_file import Model
from oneround.models.ensemble import Ensemble, average, weighted_mean
from oneround.models.inference import to_fast_layout
from oneround.runs.loop import Loop
from oneround.runs.optimization import learning_rate, make_optimizer
from oneround.runs.run import Run
from oneround.runs.stage import derived_seed
from oneround.schema import Strict
from oneround.site.training import train_epoch

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


def fedavg(ensemble: Ensemble, run: Run, options: Options) -> Model:
    """The average after the last round."""
    model, architecture, task = average(ensemble), ensemble.clients[0].architecture, ensemble.task
    if options.rounds == 1:
        return Model(model, task, (architecture,))
    simulated = SimulatedSites.of(run, "FedAvg of many rounds")
    start = derived_seed(simulated.study.seed, "initialization")
    model = models.build(architecture, task.image, len(task.classes), start)
    to_fast_layout(model)
    stage = run.stage("rounds")
    model = stage.fabric.to_device(model)
    loop = Loop(stage, options.rounds, {"model": model})
    for number in loop:
        rate = learning_rate("cosine", options.learning_rate, number - 1, options.rounds)
        _one_round(model, simulated, options.epochs, rate, number, loop)
        loop.observe(model)
    sent = 2 * options.rounds * len(simulated.images) * models.size_in_bytes(model)
    return Model(model.cpu().eval(), task, (architecture,), bytes_sent=sent)


def _one_round(
    model: nn.Module,
    simulated: SimulatedSites,
    epochs: int,
    rate: float,
    number: int,
    loop: Loop,
) -> None:
    """Every site trains a copy of ``model``, which becomes their average."""
    stage, spec = loop.stage, simulated.study.training
    states, losses, images = [], [], []
    for site, (train, _) in simulated.images.items():
        local = copy.deepcopy(model)
        optimizer = make_optimizer(
            local.parameters(),
            learning_rate=rate,
            momentum=spec.momentum,
            weight_decay=spec.weight_decay,
        )
        network, optimizer = stage.fabric.setup(local, optimizer)
        for epoch in range(epochs):
            draw = stage.generator(site, number, epoch)
            rates = itertools.repeat(rate)
            loss = train_epoch(network, optimizer, rates, simulated.study, train, loop, draw)
        states.append(local.state_dict())
        losses.append(loss)
        images.append(len(train))
    model.load_state_dict(weighted_mean(states, images))
    stage.log({"round": number, "loss": sum(losses) / len(losses), "learning_rate": rate})
