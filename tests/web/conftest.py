from __future__ import annotations

import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.testclient import TestClient

from oneround.coordinator.inbox import Inbox
from oneround.study import Study, SubmissionSpec
from oneround.submission import TrainingSummary, write_submission
from oneround.web.app import Place, make_app
from oneround.web.intake import Intake
from tests import tiny

SITES = ("north", "south", "west")
SUBMISSION = SubmissionSpec.model_validate({"at_least": 2, "deadline": "2099-01-31"})
STUDY = tiny.STUDY.model_copy(update={"name": "blood", "sites": SITES, "submission": SUBMISSION})
HOST = "http://127.0.0.1"


def write_file(path: Path, site: str, seed: int, study: Study = STUDY) -> Path:
    return write_submission(
        path,
        model=tiny.network(seed),
        study=study,
        site=site,
        architecture=tiny.RESNET,
        images=60,
        class_counts=(20, 20, 20),
        training=TrainingSummary(epochs=2, best_epoch=1, loss=1.0),
    )


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the three sites would submit; and ``again``, another file of north."""
    folder = tmp_path_factory.mktemp("files")
    for number, site in enumerate(SITES):
        write_file(folder / f"{site}.oneround", site, number)
    write_file(folder / "again.oneround", "north", 7)
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def intake(inbox: Path) -> Iterator[Intake]:
    found = Intake(Inbox(inbox, STUDY))
    yield found
    found.close()


@pytest.fixture
def place(intake: Intake, tmp_path: Path) -> Place:
    return Place(intake, tmp_path / "run", tmp_path / "blood.toml", delay=0)


class Browser(TestClient):
    """One visitor: keeps its cookie, and knows what is in the forms."""

    def log_in(self, token: str) -> httpx.Response:
        return self.post("/login", data={"token": token})

    @property
    def csrf(self) -> str:
        return re.search(r'name="csrf" value="(\w+)"', self.get("/").text)[1]

    def upload(self, file: Path, **fields: str) -> httpx.Response:
        """By the form of the page: first the fields, then the file."""
        form = {"csrf": self.csrf} | fields
        return self.post("/upload", data=form, files={"file": (file.name, file.read_bytes())})


@pytest.fixture
def stranger(place: Place) -> Callable[[], Browser]:
    """Makes visitors that have not logged in."""
    application = make_app(place, ["127.0.0.1", "localhost"])
    return lambda: Browser(application, base_url=HOST)


@pytest.fixture
def visitor(stranger: Callable[[], Browser], intake: Intake) -> Callable[[str | None], Browser]:
    """Makes visitors that have: a site, or the coordinator (None)."""

    def logged_in(site: str | None) -> Browser:
        browser = stranger()
        assert browser.log_in(intake.state.new_token(site)).url.path == "/"
        return browser

    return logged_in


@pytest.fixture
def url(place: Place) -> Iterator[str]:
    """The page on a real connection, in a thread of this process."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        make_app(place, ["127.0.0.1"]), http="h11", ws="none", log_level="error", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


def names(folder: Path) -> set[str]:
    """All files but those of the database and the lock."""
    return {p.name for p in folder.iterdir() if not p.name.startswith(".oneround.")}


def half(file: Path, folder: Path) -> Path:
    """A file that was cut off, under its own name."""
    path = folder / file.name
    shutil.copy(file, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path
