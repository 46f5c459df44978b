from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from oneround.coordinator.aggregate import aggregate
from oneround.submission import Submission, TrainingSummary, read_submissions, write_submission
from tests import tiny

LONG = ("test_processes.py", "test_docs.py", "web/test_server.py")
"""Files that take longest, most of it waiting for processes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that nobody waits for it at the end."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONG))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def submission_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Written by two sites of the tiny study."""
    folder = tmp_path_factory.mktemp("submissions")
    for client in tiny.clients():
        write_submission(
            folder / f"{client.site}.oneround",
            model=client.model,
            study=tiny.STUDY,
            site=client.site,
            architecture=client.architecture,
            images=client.images,
            class_counts=client.class_counts,
            training=TrainingSummary(epochs=2, best_epoch=1, loss=1.0),
        )
    return sorted(folder.iterdir())


@pytest.fixture
def submissions(submission_files: list[Path]) -> list[Submission]:
    return read_submissions(submission_files, tiny.STUDY)


@pytest.fixture(scope="session")
def finished_run(submission_files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RUN folder of a global model of the tiny study; copy it before you change it."""
    folder = tmp_path_factory.mktemp("run")
    submissions = read_submissions(submission_files, tiny.STUDY)
    aggregate(tiny.STUDY, submissions, out=folder, options=tiny.HEADFIT)
    return folder
