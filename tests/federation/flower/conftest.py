from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs the extra flower")

from flwr.supercore.task_identity import TaskIdentity

from oneround.federation.flower.messages import TRAIN
from tests.federation.flower.federation import SITES, asked, hospitals, node_config


@pytest.fixture(scope="session", autouse=True)
def identity() -> None:
    """Messages name the run and the node that they come from, as Flower's processes set it."""
    TaskIdentity._run_id = TaskIdentity._node_id = TaskIdentity._task_id = 1


@pytest.fixture(scope="session")
def trained_once(identity: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospitals")
    study = hospitals(folder)
    for site in SITES:
        asked(TRAIN, node_config(folder, site), study=study.hash)
    return folder


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path) -> Path:
    """Folders of three hospitals that have made their submissions already."""
    return Path(shutil.copytree(trained_once, tmp_path / "trained"))
