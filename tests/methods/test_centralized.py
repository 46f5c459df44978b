from __future__ import annotations

from pathlib import Path

import pytest

from oneround import methods
from oneround.data import ImageSet
from oneround.errors import OneRoundError
from oneround.methods import SimulatedSites
from oneround.models.ensemble import Ensemble
from oneround.runs.run import Run
from oneround.site.training import train_client
from tests.tiny import RESNET, STUDY, TASK, clients, equal, images

METHOD = methods.get("centralized")


def test_is_one_site_with_the_images_of_all(tmp_path: Path) -> None:
    parts = [images(16, seed=1), images(32, seed=2)]
    val = images(6, seed=3)
    sites: dict[str, tuple[ImageSet, ImageSet | None]] = {
        "site-0": (parts[0], val),
        "site-1": (parts[1], None),
    }
    with Run(tmp_path, {}, simulated=SimulatedSites(STUDY, sites)) as run:
        made = METHOD.function(Ensemble(clients(2), TASK), run, METHOD.resolve())
    stage = run.stages["centralized"]
    assert stage.cost.flops > 0
    assert made.architectures == (RESNET,)
    assert made.bytes_sent == (16 + 32 + 6) * 3 * 16 * 16

    with Run(tmp_path / "again", {}) as run:
        alone = train_client(
            STUDY, "centralized", ImageSet.join(parts), val, stage=run.stage("centralized")
        )
    assert equal(made.network, alone.model)


def test_needs_a_simulation(tmp_path: Path) -> None:
    with Run(tmp_path, {}) as run, pytest.raises(OneRoundError, match="only a simulation"):
        METHOD.function(Ensemble(clients(2), TASK), run, METHOD.resolve())
