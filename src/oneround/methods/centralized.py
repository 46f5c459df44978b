"""Centralized training: one network on the images of all sites together, in simulations only.

Privacy forbids this, and federated learning is measured against it (as by McMahan et al.,
AISTATS 2017, and since). The recipe is that of a site (:mod:`oneround.site.training`), on the
pooled training images, with the epoch selected on the pooled validation images.
"""

from __future__ import annotations

from oneround.data import ImageSet
from oneround.methods import SimulatedSites
from oneround.model_file import Model
from oneround.models.ensemble import Ensemble
from oneround.runs.run import Run
from oneround.schema import Strict
from oneround.site.training import train_client

NAME = "centralized"

NEEDS = "A simulation."


class Options(Strict):
    """No options: the study has the training recipe."""


PRESETS: dict[str, Strict] = {"quick": Options(), "paper": Options()}


def centralized(ensemble: Ensemble, run: Run, options: Options) -> Model:
    """Centralized training of the study's first architecture on the images of all sites.

    Raises:
        OneRoundError: the run is not a simulation.
    """
    simulated = SimulatedSites.of(run, "centralized training")
    sites = simulated.images.values()
    train = ImageSet.join([train for train, _ in sites])
    val = [val for _, val in sites if val is not None]
    client = train_client(
        simulated.study.model_copy(update={"sites": ()}),
        NAME,
        train,
        ImageSet.join(val) if val else None,
        stage=run.stage(NAME),
    )
    sent = train.nbytes + sum(part.nbytes for part in val)
    return Model(client.model, ensemble.task, (client.architecture,), bytes_sent=sent)
