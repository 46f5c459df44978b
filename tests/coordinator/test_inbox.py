from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from oneround import signing
from oneround.coordinator.inbox import status_of, submissions_in
from oneround.errors import OneRoundError
from oneround.site.training import train_client
from oneround.study import Study, SubmissionSpec
from oneround.submission import seal_submission
from tests import tiny

SITES = ("north", "south", "west")
STUDY = tiny.STUDY.model_copy(update={"sites": SITES})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("trained")
    for number, site in enumerate(SITES):
        client = train_client(STUDY, site, tiny.images(24, seed=number))
        client.write(folder / f"{site}.oneround", STUDY)
    return {site: folder / f"{site}.oneround" for site in SITES}


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


def test_who_has_handed_in(inbox: Path) -> None:
    found = status_of(STUDY, submissions_in(inbox))
    assert [(file.file, file.site, file.accepted) for file in found.files] == [
        ("north.oneround", "north", True),
        ("south.oneround", None, False),
    ]
    assert "truncated" in [problem.code for problem in found.files[1].problems]
    assert found.missing == ["south", "west"]
    assert (found.accepted, found.enough) == (1, True)


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
