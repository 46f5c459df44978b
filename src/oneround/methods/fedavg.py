"""One-shot FedAvg: the client models averaged into one network.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
AISTATS 2017, algorithm 1 with one round: θ = Σ_k n_k/n · θ_k, BatchNorm statistics included.
Deviation: the client models do not start from the same weights, since the sites never talk
to each other before they train.
"""

from __future__ import annotations

import copy

import torch

from oneround.ensemble import Ensemble
from oneround.errors import OneRoundError
from oneround.methods import GlobalModel
from oneround.run import Run
from oneround.study import Strict, Study


class Options(Strict):
    """Nothing can be chosen."""


PRESETS: dict[str, Strict] = {"quick": Options(), "paper": Options()}


def fedavg(ensemble: Ensemble, study: Study, run: Run, options: Options) -> GlobalModel:
    """The average; see :func:`average`."""
    return average(ensemble)


def average(ensemble: Ensemble) -> GlobalModel:
    """Weights averaged by the number of training images.

    Raises:
        OneRoundError: the architectures differ.
    """
    architectures = {str(client.architecture) for client in ensemble.clients}
    if len(architectures) > 1:
        raise OneRoundError(
            f"weights of different architectures cannot be averaged: "
            f"{', '.join(sorted(architectures))}.",
            remedy="Use a method that distills, such as kang2025.",
        )
    images = torch.tensor([float(client.images) for client in ensemble.clients])
    share = images / images.sum()
    states = [model.state_dict() for model in ensemble.models]
    mean = {
        name: sum(w * state[name].double() for w, state in zip(share, states, strict=True))
        for name in states[0]
    }
    model = copy.deepcopy(ensemble.models[0])
    model.load_state_dict({name: mean[name].to(states[0][name].dtype) for name in mean})
    return GlobalModel(model.eval(), (ensemble.clients[0].architecture,))
