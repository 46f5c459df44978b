"""FedAvg: the weights of the client models are averaged, in one round or in many.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
AISTATS 2017, algorithm 1: in each round all sites train the same network on their own images, and
its weights become θ = Σ_k n_k/n · θ_k, including the BatchNorm statistics.

One round is the average of the submissions. More ``rounds`` show the gain from more communication.
They need the images of the sites again and again, so they are possible in simulations only, and
start from the initial weights of all sites of the study. Every site takes part in every round; the
learning rate falls along a cosine over the rounds, where the paper has a constant.
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
    """Options of FedAvg.

    Attributes:
        rounds: Rounds of communication; 1: the average of the submissions; more: in simulations
            only.
        epochs: Epochs of training at each site in each round, if there are several rounds.
        learning_rate: Learning rate of SGD in the first round, if there are several rounds.
    """

    rounds: int = Field(default=1, ge=1)
    epochs: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=0.05, gt=0)


PRESETS: dict[str, Strict] = {"quick": Options(), "paper": Options()}


def fedavg(ensemble: Ensemble, run: Run, options: Options) -> Model:
    """FedAvg: the averaged network after the last round.

    Raises:
        OneRoundError: the architectures differ, or there are several rounds and the run is not a
            simulation.
    """
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
