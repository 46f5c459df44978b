from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from oneround import signing
from oneround.coordinator import inbox as coordinator_inbox
from oneround.coordinator.inbox import Inbox, submissions_in
from oneround.errors import OneRoundError
from oneround.study import SubmissionSpec
from oneround.submission import seal_submission
from oneround.web.database import Receipt
from oneround.web.intake import Intake
from tests.web.conftest import STUDY, half, names


def sent(intake: Intake, site: str, file: Path, *, replace: bool = False) -> Receipt:
    part = intake.inbox.folder / ".upload-0.part"
    shutil.copyfile(file, part)
    sha256 = hashlib.sha256(part.read_bytes()).hexdigest()
    number = intake.receive(site, part, sha256, replace=replace)
    part.unlink(missing_ok=True)
    return intake.state.receipts()[number]


def codes(receipt: Receipt) -> list[str]:
    return [problem.code for problem in receipt.problems if problem.fatal]


def test_a_right_file_is_kept_under_the_name_of_its_site(
    intake: Intake, files: dict[str, Path]
) -> None:
    receipt = sent(intake, "north", files["north"])
    assert receipt.accepted
    kept = intake.inbox.folder / "north.oneround"
    assert kept.read_bytes() == files["north"].read_bytes()
    assert receipt.sha256 == hashlib.sha256(kept.read_bytes()).hexdigest()
    assert names(intake.inbox.folder) == {"north.oneround"}
    assert intake.inbox.status().accepted == 1


def test_bad_files_are_refused_with_their_codes(
    intake: Intake, files: dict[str, Path], tmp_path: Path
) -> None:
    assert codes(sent(intake, "north", half(files["north"], tmp_path))) == ["truncated"]
    assert codes(sent(intake, "north", Path(__file__))) == ["not-a-submission"]
    assert codes(sent(intake, "south", files["north"])) == ["other-site"]
    assert names(intake.inbox.folder) == set()
    intake.inbox.study = STUDY.model_copy(update={"seed": 1})
    assert codes(sent(intake, "north", files["north"])) == ["other-study"]


def test_replaced_only_when_asked(intake: Intake, files: dict[str, Path]) -> None:
    assert sent(intake, "north", files["north"]).accepted
    assert codes(sent(intake, "north", files["again"])) == ["already-here"]
    assert (intake.inbox.folder / "north.oneround").read_bytes() == files["north"].read_bytes()
    assert sent(intake, "north", files["again"], replace=True).accepted
    assert (intake.inbox.folder / "north.oneround").read_bytes() == files["again"].read_bytes()
    assert intake.inbox.status().accepted == 1


def test_a_broken_file_is_no_obstacle(intake: Intake, files: dict[str, Path]) -> None:
    half(files["north"], intake.inbox.folder)
    assert sent(intake, "north", files["north"]).accepted


@pytest.mark.parametrize("name", ["north-2.oneround", "south.oneround"])
def test_files_that_came_another_way_are_left_alone(
    intake: Intake, files: dict[str, Path], name: str
) -> None:
    """Of the site under another name, or of another site under this name."""
    shutil.copy(files["north"], intake.inbox.folder / name)
    site = "north" if name.startswith("north") else "south"
    assert codes(sent(intake, site, files[site], replace=True)) == ["name-taken"]
    assert names(intake.inbox.folder) == {name}


def test_late_files_are_accepted_and_marked(inbox: Path, files: dict[str, Path]) -> None:
    past = SubmissionSpec.model_validate({"deadline": "2020-01-01"})
    intake = Intake(Inbox(inbox, STUDY.model_copy(update={"submission": past})))
    receipt = sent(intake, "north", files["north"])
    assert (receipt.accepted, receipt.late) == (True, True)


def test_what_has_not_changed_is_not_checked_again(
    intake: Intake, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []
    examine = coordinator_inbox.examine

    def counting(path: Path, *arguments: object) -> object:
        checked.append(path.name)
        return examine(path, *arguments)

    monkeypatch.setattr(coordinator_inbox, "examine", counting)
    sent(intake, "north", files["north"])
    shutil.copy(files["south"], intake.inbox.folder)
    for _ in range(3):
        assert intake.inbox.status().accepted == 2
    assert checked == [".upload-0.part", "south.oneround"]
    shutil.copy(files["north"], intake.inbox.folder / "south.oneround")
    os.utime(intake.inbox.folder / "south.oneround", (1, 1))
    assert [problem.code for problem in intake.inbox.status().together] == ["site-twice"]
    (intake.inbox.folder / "south.oneround").unlink()
    assert intake.inbox.status().missing == ["south", "west"]


def test_the_next_start_sets_right_what_was_left_undone(
    inbox: Path, files: dict[str, Path]
) -> None:
    """Part files of dead uploads go; a file without a receipt gets one; one with it, none."""
    first = Intake(Inbox(inbox, STUDY))
    sent(first, "north", files["north"])
    first.close()
    shutil.copy(files["south"], inbox)
    (inbox / ".upload-00.part").write_bytes(b"half")
    second = Intake(Inbox(inbox, STUDY))
    receipts = second.state.receipts()
    assert [(r.site, r.accepted) for r in receipts.values()] == [("south", True), ("north", True)]
    assert names(inbox) == {"north.oneround", "south.oneround"}
    second.close()
    assert len(Intake(Inbox(inbox, STUDY)).state.receipts()) == 2


def test_one_process_at_a_time(intake: Intake) -> None:
    with pytest.raises(OneRoundError, match="another process takes files"):
        Intake(Inbox(intake.inbox.folder, STUDY))


def test_the_folder_is_that_of_the_other_commands(intake: Intake, files: dict[str, Path]) -> None:
    sent(intake, "north", files["north"])
    (intake.inbox.folder / ".upload-1.part").write_bytes(b"half")
    assert [path.name for path in submissions_in(intake.inbox.folder)] == ["north.oneround"]


def test_encrypted_files(inbox: Path, files: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("pyrage")
    pair = signing.new_encryption_key(tmp_path / "coordinator")
    submission = SubmissionSpec(encrypt_to=signing.read_recipient(pair.public))
    study = STUDY.model_copy(update={"submission": submission})
    with pytest.raises(OneRoundError, match="nobody here can check"):
        Inbox(inbox, study)
    plain = shutil.copy(files["north"], tmp_path)
    sealed = seal_submission(plain, study)
    intake = Intake(Inbox(inbox, study, signing.Identity(pair.private)))
    assert sent(intake, "north", plain).accepted
    assert sent(intake, "north", sealed, replace=True).accepted
    assert names(inbox) == {"north.oneround.age"}
    broken = tmp_path / "broken.age"
    broken.write_bytes(sealed.read_bytes()[:-1])
    receipt = sent(intake, "north", broken, replace=True)
    assert codes(receipt) == ["other-recipient"]
    assert str(tmp_path) not in receipt.problems[0].what, "no path of the server"
