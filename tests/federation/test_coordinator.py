from __future__ import annotations

from pathlib import Path

import pytest

from oneround.errors import OneRoundError
from oneround.federation.coordinator import open_inbox, take_submission
from oneround.site.training import train_client
from tests import tiny


def submission(folder: Path, site: str) -> bytes:
    train_client(tiny.STUDY, site, tiny.images(12)).write(folder / "made.oneround", tiny.STUDY)
    return (folder / "made.oneround").read_bytes()


def test_what_was_refused_is_no_obstacle(tmp_path: Path) -> None:
    """Neither under the same name nor as the other form of the file."""
    inbox = open_inbox(tmp_path / "inbox", tiny.STUDY)
    for name in ("north.oneround", "north.oneround.age"):
        (inbox.folder / name).write_bytes(b"nothing")
    assert take_submission(inbox, {"x": submission(tmp_path, "north")}).site == "north"
    assert [file.file for file in inbox.status().files] == ["north.oneround"]
    assert [path.name for path in inbox.folder.iterdir()] == ["north.oneround"]
    assert open_inbox(inbox.folder, tiny.STUDY).sites == {"north"}


def test_the_file_of_another_site_stays(tmp_path: Path) -> None:
    inbox = open_inbox(tmp_path / "inbox", tiny.STUDY)
    south = submission(tmp_path, "south")
    (inbox.folder / "north.oneround").write_bytes(south)
    with pytest.raises(OneRoundError, match=r"north\.oneround is here, a file of 'south'"):
        take_submission(inbox, {"x": submission(tmp_path, "north")})
    assert [path.name for path in inbox.folder.iterdir()] == ["north.oneround"]
    assert (inbox.folder / "north.oneround").read_bytes() == south


@pytest.mark.parametrize("files", [{}, {"a": b"1", "b": b"2"}])
def test_one_file_is_a_submission(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(OneRoundError, match="sent no submission"):
        take_submission(open_inbox(tmp_path, tiny.STUDY), files)


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    inbox = open_inbox(tmp_path, tiny.STUDY)
    inbox.limit = 100
    with pytest.raises(OneRoundError, match="larger than 100 bytes"):
        take_submission(inbox, {"x": bytes(101)})
    assert list(tmp_path.iterdir()) == []
