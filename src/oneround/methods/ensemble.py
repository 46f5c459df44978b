"""Ensemble: all client models together are the global model, without a student.

Guha et al., "One-shot federated learning", arXiv:1902.11175, 2019. Each use costs K times the
memory and time of one network, and every site receives every client model.
"""

from __future__ import annotations

from oneround.model_file import Model
from oneround.models.ensemble import Ensemble, Rule
from oneround.runs.run import Run
from oneround.schema import Strict

NEEDS = "Any client models."


class Options(Strict):
    """Options of the ensemble.

    Attributes:
        rule: Rule that combines the outputs of the client models; ``auto``: ``class-counts`` if
            all sites share their class counts, else ``probabilities``.
    """

    rule: Rule = "auto"


PRESETS: dict[str, Strict] = {"quick": Options(), "paper": Options()}


def ensemble(ensemble: Ensemble, run: Run, options: Options) -> Model:
    """All client models, combined by ``options.rule``."""
    architectures = tuple(client.architecture for client in ensemble.clients)
    return Model(ensemble.with_rule(options.rule), ensemble.task, architectures)
