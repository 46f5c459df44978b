"""The client models used together, without a student.

Guha et al., "One-shot federated learning", arXiv:1902.11175, 2019. Costs K times the memory
and time of one network at every use, and gives every client model to every site.
"""

from __future__ import annotations

from oneround.model_file import Model
from oneround.models.ensemble import Ensemble, Rule
from oneround.runs.run import Run
from oneround.schema import Strict

NEEDS = "Nothing."


class Options(Strict):
    """How outputs are combined.

    Attributes:
        rule: how the outputs of the client models become one; ``auto``: ``class-counts`` if
            all sites share theirs, else ``probabilities``.
    """

    rule: Rule = "auto"


PRESETS: dict[str, Strict] = {"quick": Options(), "paper": Options()}


def ensemble(ensemble: Ensemble, run: Run, options: Options) -> Model:
    """All client models, combined by ``options.rule``."""
    architectures = tuple(client.architecture for client in ensemble.clients)
    return Model(ensemble.with_rule(options.rule), ensemble.task, architectures)
