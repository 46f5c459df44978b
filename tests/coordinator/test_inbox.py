from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from oneround import signing
from oneround.coordinator import inbox as inbox_module
from oneround.coordinator.inbox import Inbox, Received, status_of, submissions_in
from oneround.errors import OneRoundError, Problem
from oneround.federation.coordinator import take_submission
from oneround.site.training import train_client
from oneround.study import Study, SubmissionSpec
from oneround.submission import read, seal_submission
from oneround.web.intake import Intake
from tests import tiny

NORTH = "north"
SITES = (NORTH, "south", "west")
STUDY = tiny.STUDY.model_copy(update={"sites": SITES})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("trained")
    for number, name in enumerate((*SITES, "again")):
        client = train_client(STUDY, NORTH if name == "again" else name, tiny.images(24, number))
        client.write(folder / f"{name}.oneround", STUDY)
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture
def inbox(trained: dict[str, Path], tmp_path: Path) -> Path:
    """What came in so far: two of three, one of them broken, and a letter."""
    folder = tmp_path / "inbox"
    folder.mkdir()
    shutil.copy(trained["north"], folder)
    content = trained["south"].read_bytes()
    (folder / "south.oneround").write_bytes(content[: len(content) // 2])
    (folder / "letter.txt").write_text("Dear coordinator,")
    return folder


def asking(**submission: object) -> Study:
    return STUDY.model_copy(update={"submission": SubmissionSpec.model_validate(submission)})


def test_who_has_submitted(inbox: Path) -> None:
    found = status_of(STUDY, submissions_in(inbox))
    assert [(file.file, file.site, file.accepted) for file in found.files] == [
        ("north.oneround", "north", True),
        ("south.oneround", None, False),
    ]
    assert "truncated" in [problem.code for problem in found.files[1].problems]
    assert found.missing == ["south", "west"]
    assert (found.accepted, found.enough, found.at_least) == (1, False, 3)


@pytest.mark.parametrize(("at_least", "enough"), [(1, True), (2, False), (3, False)])
def test_k_of_n(inbox: Path, at_least: int, enough: bool) -> None:
    assert status_of(asking(at_least=at_least), submissions_in(inbox)).enough == enough


def test_late_is_said_and_counts(inbox: Path) -> None:
    study = asking(deadline="2027-01-31")
    for name, day in (("north", 31), ("south", 30)):
        time = datetime(2027, 1, day, 23, 30, tzinfo=UTC).timestamp()
        os.utime(inbox / f"{name}.oneround", (time, time))
    assert [file.late for file in status_of(study, submissions_in(inbox)).files] == [False, False]
    time = datetime(2027, 2, 1, tzinfo=UTC).timestamp()
    os.utime(inbox / "north.oneround", (time, time))
    found = status_of(study, submissions_in(inbox))
    assert [file.late for file in found.files] == [True, False]
    assert found.accepted == 1


def test_two_of_one_site_are_not_enough(inbox: Path) -> None:
    shutil.copy(inbox / "north.oneround", inbox / "north-2.oneround")
    found = status_of(STUDY, submissions_in(inbox))
    assert [problem.code for problem in found.together] == ["site-twice"]
    assert (found.accepted, found.enough) == (1, False)


def test_sealed_files(trained: dict[str, Path], tmp_path: Path) -> None:
    pair = signing.new_signing_key(tmp_path / "north")
    coordinator = signing.new_encryption_key(tmp_path / "coordinator")
    study = asking(
        keys={"north": signing.read_public_key(pair.public)},
        encrypt_to=signing.read_recipient(coordinator.public),
    )
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    shutil.copy(trained["north"], inbox)
    shutil.copy(trained["south"], inbox)
    seal_submission(inbox / "north.oneround", study, key=pair.private)
    shutil.copy(trained["north"], inbox)
    identity = signing.Identity(coordinator.private)
    found = status_of(study, submissions_in(inbox), identity=identity)
    assert [(f.file, f.site, f.accepted) for f in found.files] == [
        ("north.oneround", None, False),  # not signed
        ("north.oneround.age", "north", True),
        ("south.oneround", None, False),
    ]
    assert found.files[1].signed_by == signing.fingerprint(study.submission.keys["north"])


def test_both_forms_of_a_file_are_one(trained: dict[str, Path], tmp_path: Path) -> None:
    coordinator = signing.new_encryption_key(tmp_path / "coordinator")
    study = asking(encrypt_to=signing.read_recipient(coordinator.public))
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    shutil.copy(trained["north"], inbox)
    seal_submission(inbox / "north.oneround", study)
    found = status_of(study, submissions_in(inbox), identity=signing.Identity(coordinator.private))
    assert [(f.file, f.accepted) for f in found.files] == [("north.oneround", True)]


@pytest.mark.parametrize("other", ["south", "again"])
def test_no_site_hides_the_encrypted_file_of_another(
    trained: dict[str, Path], tmp_path: Path, other: str
) -> None:
    """A file of the plain name stands beside it, of another site or with another content."""
    coordinator = signing.new_encryption_key(tmp_path / "coordinator")
    study = asking(encrypt_to=signing.read_recipient(coordinator.public))
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    shutil.copy(trained["north"], inbox)
    seal_submission(inbox / "north.oneround", study)
    shutil.copy(trained[other], inbox / "north.oneround")
    found = status_of(study, submissions_in(inbox), identity=signing.Identity(coordinator.private))
    site = {"again": "north"}.get(other, other)
    assert [(f.file, f.site, f.accepted) for f in found.files] == [
        ("north.oneround", site, True),
        ("north.oneround.age", "north", True),
    ]
    assert [problem.code for problem in found.together] == ["site-twice"] * (site == "north")


def test_a_refused_file_is_in_the_row_of_its_site(inbox: Path) -> None:
    (inbox / "east.oneround").write_bytes(b"PK")
    rows = [
        (site, file and file.file) for site, file in status_of(STUDY, submissions_in(inbox)).rows
    ]
    assert rows == [
        (None, "east.oneround"),
        ("north", "north.oneround"),
        ("south", "south.oneround"),
        ("west", None),
    ]


@pytest.mark.parametrize("way", ["vanishes", "cannot be read", "vanishes between"])
def test_one_file_that_vanishes_does_not_end_it_for_all(
    inbox: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    paths = submissions_in(inbox)
    if way == "vanishes":
        (inbox / "south.oneround").unlink()
    elif way == "cannot be read":
        (inbox / "south.oneround").unlink()
        (inbox / "south.oneround").symlink_to("south.oneround")
    else:
        checked = inbox_module.check_submission

        def check(path: Path, *arguments: Any, **named: Any) -> list[Problem]:
            found = checked(path, *arguments, **named)
            path.unlink()
            return found

        monkeypatch.setattr(inbox_module, "check_submission", check)
        paths = [inbox / "north.oneround"]
    found = status_of(STUDY, paths)
    assert len(found.files) == len(paths)
    assert not found.files[-1].accepted
    assert found.accepted == (way != "vanishes between")


def test_what_is_taken_is_for_the_coordinator_alone(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    inbox = opened(tmp_path)
    by_upload(inbox, files["north"])
    by_node(inbox, files["south"])
    for path in submissions_in(inbox.folder):
        assert path.stat().st_mode & 0o777 == 0o600


def test_without_a_list_of_sites_those_with_keys_are_asked(tmp_path: Path) -> None:
    pair = signing.new_signing_key(tmp_path / "east")
    submission = SubmissionSpec(keys={"east": signing.read_public_key(pair.public)})
    study = tiny.STUDY.model_copy(update={"submission": submission})
    assert status_of(study, []).missing == ["east"]


@pytest.mark.parametrize(
    ("name", "taken"),
    [("Süd-Klinik (2).oneround", True), ("a\x1b[31m.oneround", False), (".x.oneround", False)],
)
def test_names_that_can_be_printed(tmp_path: Path, name: str, taken: bool) -> None:
    (tmp_path / name).touch()
    assert len(submissions_in(tmp_path)) == taken


def test_nothing_yet(tmp_path: Path) -> None:
    found = status_of(STUDY, submissions_in(tmp_path))
    assert (found.files, found.missing, found.enough) == ([], list(SITES), False)
    with pytest.raises(OneRoundError, match="no such folder"):
        submissions_in(tmp_path / "missing")


# The one rule: an accepted file is never silently replaced or lost


@pytest.fixture
def files(trained: dict[str, Path], tmp_path: Path) -> dict[str, bytes]:
    """All files, also encrypted: ``north`` and ``north.age``, two of north, and so on."""
    study, folder = encrypting(tmp_path), tmp_path / "sealed"
    folder.mkdir()
    for path in trained.values():
        seal_submission(shutil.copy(path, folder), study)
    return {path.name.replace(".oneround", ""): path.read_bytes() for path in folder.iterdir()}


def encrypting(folder: Path) -> Study:
    recipient = folder / "coordinator.recipient"
    if not recipient.exists():
        signing.new_encryption_key(folder / "coordinator")
    return asking(encrypt_to=signing.read_recipient(recipient))


def opened(folder: Path) -> Inbox:
    (folder / "inbox").mkdir(exist_ok=True)
    identity = signing.Identity(folder / "coordinator.identity")
    return Inbox(folder / "inbox", encrypting(folder), identity)


def take(inbox: Inbox, content: bytes, *, replace: bool = False) -> Received:
    part = inbox.folder / ".part"
    part.write_bytes(content)
    found = inbox.take(part, replace=replace)
    assert found.accepted != part.exists()
    part.unlink(missing_ok=True)
    return found


def by_upload(inbox: Inbox, content: bytes, *, replace: bool = False) -> list[str]:
    """Codes of what is fatal."""
    intake, part = Intake(inbox), inbox.folder / ".upload-0.part"
    part.write_bytes(content)
    receipt = intake.state.receipt(intake.receive(NORTH, part, "0" * 64, replace=replace))
    part.unlink(missing_ok=True)
    intake.close()
    assert receipt is not None
    return [problem.code for problem in receipt.problems if problem.fatal]


def by_node(inbox: Inbox, content: bytes) -> None:
    take_submission(inbox, {"west.oneround": content})


def kept(inbox: Inbox) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in submissions_in(inbox.folder)}


@pytest.mark.parametrize("first", ["north", "north.age"])
@pytest.mark.parametrize("second", ["again", "again.age", "north", "north.age"])
def test_an_accepted_file_is_not_replaced(
    files: dict[str, bytes], tmp_path: Path, first: str, second: str
) -> None:
    """Neither by another upload, nor by another form of the file, nor by what a node sends; and
    when it is to be replaced, exactly one file of the site remains."""
    inbox = opened(tmp_path)
    assert take(inbox, files[first]).accepted
    before = kept(inbox)
    assert list(before.values()) == [files[first]]
    assert [problem.code for problem in take(inbox, files[second]).fatal] == ["already-here"]
    assert by_upload(inbox, files[second]) == ["already-here"]
    with pytest.raises(OneRoundError, match="an accepted file of 'north' is here"):
        by_node(inbox, files[second])
    assert kept(inbox) == before
    assert by_upload(inbox, files[second], replace=True) == []
    assert kept(inbox) == {f"north.oneround{'.age' * ('.age' in second)}": files[second]}
    assert inbox.sites == {NORTH}
    assert [file.file for file in inbox.status().files] == list(kept(inbox))


@pytest.mark.parametrize("name", ["north.oneround", "north.oneround.age", "other.oneround"])
def test_a_file_that_came_another_way_is_left_alone(
    files: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    """Of another site under this name, or of the site under another name; even when asked for."""
    inbox = opened(tmp_path)
    (inbox.folder / name).write_bytes(files["north" if name == "other.oneround" else "south"])
    before = kept(inbox)
    assert [p.code for p in take(inbox, files["north"], replace=True).fatal] == ["name-taken"]
    with pytest.raises(OneRoundError, match="is here, a file of"):
        by_node(inbox, files["north"])
    assert kept(inbox) == before


def test_a_file_that_nobody_looks_at_is_left_alone(files: dict[str, bytes], tmp_path: Path) -> None:
    """The encrypted form of an accepted name is passed over, and here it is of another site."""
    inbox = opened(tmp_path)
    (inbox.folder / "north.oneround").write_bytes(files["north"])
    (inbox.folder / "north.oneround.age").write_bytes(files["south.age"])
    before = kept(inbox)
    assert [p.code for p in take(inbox, files["again"], replace=True).fatal] == ["name-taken"]
    assert kept(inbox) == before


def test_a_file_that_cannot_be_read_now_is_left_alone(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = opened(tmp_path)
    take(inbox, files["north"])
    before, really = kept(inbox), read._open

    def failing(path: Path, limit: int) -> object:
        if path.name == "north.oneround":
            raise OSError(5, "Input/output error")
        return really(path, limit)

    monkeypatch.setattr(read, "_open", failing)
    found = take(opened(tmp_path), files["again"], replace=True)
    assert [problem.what for problem in found.fatal] == [
        "north.oneround is here, which cannot be read now"
    ]
    assert kept(inbox) == before


def test_the_sender_submits_its_own_file(files: dict[str, bytes], tmp_path: Path) -> None:
    inbox = opened(tmp_path)
    assert by_upload(inbox, files["south"]) == ["other-site"]
    assert kept(inbox) == {}


def test_encrypted_files_need_somebody_who_opens_them(tmp_path: Path) -> None:
    with pytest.raises(OneRoundError, match="nobody here can check"):
        Inbox(tmp_path, encrypting(tmp_path))
