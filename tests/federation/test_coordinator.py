from __future__ import annotations

from pathlib import Path

import pytest

from oneround.errors import OneRoundError
from oneround.federation.coordinator import Inbox
from oneround.site.training import train_client
from tests import tiny


def submission(folder: Path, site: str) -> bytes:
    train_client(tiny.STUDY, site, tiny.images(12)).write(folder / "made.oneround", tiny.STUDY)
    return (folder / "made.oneround").read_bytes()


def test_what_was_refused_is_no_obstacle(tmp_path: Path) -> None:
    """Neither under the same name nor as the other form of the file."""
    inbox = Inbox(tmp_path / "inbox", tiny.STUDY, None)
    for name in ("north.oneround", "north.oneround.age"):
        (inbox.folder / name).write_bytes(b"nothing")
    assert inbox.take(submission(tmp_path, "north")) == "north"
    assert [path.name for path in inbox.enough([])] == ["north.oneround"]
    assert [path.name for path in inbox.folder.iterdir()] == ["north.oneround"]
    assert Inbox(inbox.folder, tiny.STUDY, None).sites == {"north"}


def test_the_file_of_another_site_stays(tmp_path: Path) -> None:
    folder = tmp_path / "inbox"
    folder.mkdir()
    south = submission(tmp_path, "south")
    (folder / "north.oneround").write_bytes(south)
    inbox = Inbox(folder, tiny.STUDY, None)
    with pytest.raises(OneRoundError, match=r"of another site is called north\.oneround"):
        inbox.take(submission(tmp_path, "north"))
    assert (folder / "north.oneround").read_bytes() == south
