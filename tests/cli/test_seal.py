from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from oneround.study import Study
from tests.cli.conftest import Call, Workplace


@pytest.fixture
def study(call: Call, workplace: Workplace, tmp_path: Path) -> Path:
    """The study of the workplace, with a key of north, encryption and a signature."""
    path = tmp_path / "study.toml"
    shutil.copy(workplace.study, path)
    for name in ("north", "coordinator"):
        assert call("keys", "new", tmp_path / name).code == 0
    assert call("keys", "new", tmp_path / "coordinator", "--encryption").code == 0
    outcome = call(
        "study", "keys", path, "--key", f"north={tmp_path / 'north.pub'}",
        "--encrypt-to", tmp_path / "coordinator.recipient",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert call("study", "sign", path, "--key", tmp_path / "coordinator.key").code == 0
    return path


def test_the_whole_way(call: Call, workplace: Workplace, study: Path, tmp_path: Path) -> None:
    assert Study.read(study).hash == Study.read(workplace.study).hash
    file = tmp_path / "north.oneround"
    shutil.copy(workplace.submissions[0], file)
    content = call(
        "seal", study, file, "--key", tmp_path / "north.key",
        "--signed-by", tmp_path / "coordinator.pub", "--json",
    ).json  # fmt: skip
    leaves = tmp_path / "north.oneround.age"
    assert content["file"] == str(leaves)
    refused = call("inspect", leaves, "--study", study)
    assert refused.code == 1
    assert "--identity" in refused.out
    seen = call(
        "inspect", leaves, "--study", study,
        "--identity", tmp_path / "coordinator.identity", "--json",
    ).json  # fmt: skip
    assert seen["problems"] == [] or not any(problem["fatal"] for problem in seen["problems"])
    assert seen["signed_by"] == content["signed_by"]


def test_changed_study_is_refused(
    call: Call, workplace: Workplace, study: Path, tmp_path: Path
) -> None:
    public = tmp_path / "coordinator.pub"
    assert call("study", "check", study, "--signed-by", public).code == 0
    study.write_text(study.read_text().replace("epochs = 2", "epochs = 3"))
    train = ["train", study, "--data", workplace.data, "--site", "x", "--out", tmp_path / "x.o"]
    for command in (
        ["study", "check", study],
        [*train],
        ["seal", study, workplace.submissions[0]],
    ):
        outcome = call(*command, "--signed-by", public)
        assert outcome.code == 1
        assert "not what the owner of" in outcome.err
    assert not (tmp_path / "x.o").exists()


def test_new_key_makes_the_signature_stale_and_says_so(
    call: Call, study: Path, tmp_path: Path
) -> None:
    assert call("keys", "new", tmp_path / "west").code == 0
    outcome = call("study", "keys", study, "--key", f"west={tmp_path / 'west.pub'}")
    assert outcome.code == 0
    assert "sign the study again" in outcome.err
    assert set(Study.read(study).submission.keys) == {"north", "west"}


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("west", "SITE=FILE"),
        ("west={}/north.pub", "a key of its own"),
        ("w={}/north.key", "private"),
    ],
)
def test_wrong_keys_leave_the_study(
    call: Call, study: Path, tmp_path: Path, key: str, reason: str
) -> None:
    before = study.read_bytes()
    outcome = call("study", "keys", study, "--key", key.format(tmp_path))
    assert outcome.code == 1
    assert reason in outcome.err
    assert study.read_bytes() == before


def test_comments_in_the_study_stay(call: Call, study: Path, tmp_path: Path) -> None:
    study.write_text("# agreed on in May\n" + study.read_text())
    assert call("keys", "new", tmp_path / "west").code == 0
    assert call("study", "keys", study, "--key", f"west={tmp_path / 'west.pub'}").code == 0
    assert study.read_text().startswith("# agreed on in May\n")
