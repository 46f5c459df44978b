from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from oneround import signing
from oneround.errors import OneRoundError
from oneround.study import SubmissionSpec
from oneround.submission import seal_submission
from oneround.web import intake
from oneround.web.database import Receipt
from oneround.web.intake import Arrived, Desk
from tests.web.conftest import STUDY, half, names


def arrive(inbox: Path, file: Path, *, replace: bool = False) -> Arrived:
    path = inbox / ".upload-0.part"
    shutil.copyfile(file, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Arrived(path, path.stat().st_size, sha256, replace)


def sent(desk: Desk, site: str, file: Path, *, replace: bool = False) -> Receipt:
    number = desk.receive(site, arrive(desk.inbox, file, replace=replace))
    (desk.inbox / ".upload-0.part").unlink(missing_ok=True)
    return desk.state.receipts()[number]


def codes(receipt: Receipt) -> list[str]:
    return [problem.code for problem in receipt.problems if problem.fatal]


def test_a_right_file_is_kept_under_the_name_of_its_site(
    desk: Desk, files: dict[str, Path]
) -> None:
    receipt = sent(desk, "north", files["north"])
    assert receipt.accepted
    kept = desk.inbox / "north.oneround"
    assert kept.read_bytes() == files["north"].read_bytes()
    assert receipt.sha256 == hashlib.sha256(kept.read_bytes()).hexdigest()
    assert names(desk.inbox) == {"north.oneround"}
    assert desk.status().accepted == 1


def test_bad_files_are_refused_with_their_codes(
    desk: Desk, files: dict[str, Path], tmp_path: Path
) -> None:
    assert codes(sent(desk, "north", half(files["north"], tmp_path))) == ["truncated"]
    assert codes(sent(desk, "north", Path(__file__))) == ["not-a-submission"]
    assert codes(sent(desk, "south", files["north"])) == ["other-site"]
    assert names(desk.inbox) == set()
    desk.study = STUDY.model_copy(update={"seed": 1})
    assert codes(sent(desk, "north", files["north"])) == ["other-study"]


def test_replaced_only_when_asked(desk: Desk, files: dict[str, Path]) -> None:
    assert sent(desk, "north", files["north"]).accepted
    assert codes(sent(desk, "north", files["again"])) == ["already-here"]
    assert (desk.inbox / "north.oneround").read_bytes() == files["north"].read_bytes()
    assert sent(desk, "north", files["again"], replace=True).accepted
    assert (desk.inbox / "north.oneround").read_bytes() == files["again"].read_bytes()
    assert desk.status().accepted == 1


def test_a_broken_file_is_no_obstacle(desk: Desk, files: dict[str, Path]) -> None:
    half(files["north"], desk.inbox)
    assert sent(desk, "north", files["north"]).accepted


@pytest.mark.parametrize("name", ["north-2.oneround", "south.oneround"])
def test_files_that_came_another_way_are_left_alone(
    desk: Desk, files: dict[str, Path], name: str
) -> None:
    """Of the site under another name, or of another site under this name."""
    shutil.copy(files["north"], desk.inbox / name)
    site = "north" if name.startswith("north") else "south"
    assert codes(sent(desk, site, files[site], replace=True)) == ["name-taken"]
    assert names(desk.inbox) == {name}


def test_late_files_are_accepted_and_marked(inbox: Path, files: dict[str, Path]) -> None:
    past = SubmissionSpec.model_validate({"deadline": "2020-01-01"})
    desk = Desk(STUDY.model_copy(update={"submission": past}), inbox)
    receipt = sent(desk, "north", files["north"])
    assert (receipt.accepted, receipt.late) == (True, True)


def test_what_has_not_changed_is_not_checked_again(
    desk: Desk, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []
    examine = intake.examine

    def counting(path: Path, *arguments: object) -> object:
        checked.append(path.name)
        return examine(path, *arguments)

    monkeypatch.setattr(intake, "examine", counting)
    sent(desk, "north", files["north"])
    shutil.copy(files["south"], desk.inbox)
    for _ in range(3):
        assert desk.status().accepted == 2
    assert checked == [".upload-0.part", "south.oneround"]
    shutil.copy(files["north"], desk.inbox / "south.oneround")
    os.utime(desk.inbox / "south.oneround", (1, 1))
    assert [problem.code for problem in desk.status().together] == ["site-twice"]
    (desk.inbox / "south.oneround").unlink()
    assert desk.status().missing == ["south", "west"]


def test_the_next_start_sets_right_what_was_left_undone(
    inbox: Path, files: dict[str, Path]
) -> None:
    """Part files of dead uploads go; a file without a receipt gets one; one with it, none."""
    first = Desk(STUDY, inbox)
    sent(first, "north", files["north"])
    first.close()
    shutil.copy(files["south"], inbox)
    (inbox / ".upload-00.part").write_bytes(b"half")
    second = Desk(STUDY, inbox)
    receipts = second.state.receipts()
    assert [(r.site, r.accepted) for r in receipts.values()] == [("south", True), ("north", True)]
    assert names(inbox) == {"north.oneround", "south.oneround"}
    second.close()
    assert len(Desk(STUDY, inbox).state.receipts()) == 2


def test_one_desk_at_a_time(desk: Desk) -> None:
    with pytest.raises(OneRoundError, match="another process takes files"):
        Desk(STUDY, desk.inbox)


def test_the_folder_is_that_of_the_other_commands(desk: Desk, files: dict[str, Path]) -> None:
    sent(desk, "north", files["north"])
    (desk.inbox / ".upload-1.part").write_bytes(b"half")
    assert [path.name for path in intake.submissions_in(desk.inbox)] == ["north.oneround"]


def test_encrypted_files(inbox: Path, files: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("pyrage")
    pair = signing.new_encryption_key(tmp_path / "coordinator")
    submission = SubmissionSpec(encrypt_to=signing.read_recipient(pair.public))
    study = STUDY.model_copy(update={"submission": submission})
    with pytest.raises(OneRoundError, match="nobody here can check"):
        Desk(study, inbox)
    plain = shutil.copy(files["north"], tmp_path)
    sealed = seal_submission(plain, study)
    desk = Desk(study, inbox, signing.Identity(pair.private))
    assert sent(desk, "north", plain).accepted
    assert sent(desk, "north", sealed, replace=True).accepted
    assert names(inbox) == {"north.oneround.age"}
    broken = tmp_path / "broken.age"
    broken.write_bytes(sealed.read_bytes()[:-1])
    receipt = sent(desk, "north", broken, replace=True)
    assert codes(receipt) == ["other-recipient"]
    assert str(tmp_path) not in receipt.problems[0].what, "no path of the server"
