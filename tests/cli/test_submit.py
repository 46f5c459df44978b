"""The commands ``submit``, ``collect`` and ``status``, as hospital and coordinator use them."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from oneround.transfer import carrier
from tests.cli.conftest import Call, Workplace


def test_from_the_hospital_to_the_coordinator(
    call: Call, workplace: Workplace, tmp_path: Path
) -> None:
    share, inbox = tmp_path / "share", tmp_path / "inbox"
    share.mkdir()
    for file in workplace.submissions:
        assert call("submit", file, share, "--json").json["sent"]
        assert not call("submit", file, share, "--json").json["sent"]
    names = [file.name for file in workplace.submissions]
    assert call("collect", share, "--out", inbox, "--json").json["fetched"] == names
    again = call("collect", share, "--out", inbox, "--json").json
    assert (again["fetched"], again["known"]) == ([], names)
    found = call("status", workplace.study, inbox, "--json").json
    assert (found["accepted"], found["enough"], found["missing"]) == (2, True, [])
    outcome = call("status", workplace.study, share.as_uri())
    assert outcome.code == 0
    assert "2 of any number of sites, 2 needed: enough" in outcome.out


def test_changed_file_takes_no_place_unasked(
    call: Call, workplace: Workplace, tmp_path: Path
) -> None:
    share, inbox = tmp_path / "share", tmp_path / "inbox"
    share.mkdir()
    first, second = (file.read_bytes() for file in workplace.submissions)
    (share / "site.oneround").write_bytes(first[:1000])
    assert call("collect", share, "--out", inbox).code == 0
    (share / "site.oneround").write_bytes(first)  # nobody has accepted half a file
    assert call("collect", share, "--out", inbox, "--json").json["fetched"] == ["site.oneround"]
    (share / "site.oneround").write_bytes(second)
    outcome = call("collect", share, "--out", inbox, "--json")
    assert outcome.code == 1
    assert "--replace" in json.loads(outcome.out)["failed"]["site.oneround"]
    assert (inbox / "site.oneround").read_bytes() == first
    outcome = call("collect", share, "--out", inbox, "--replace", "--json")
    assert outcome.json["fetched"] == ["site.oneround"]
    assert (inbox / "site.oneround").read_bytes() == second


def test_same_file_that_came_again_is_known(
    call: Call, workplace: Workplace, tmp_path: Path
) -> None:
    share, inbox = tmp_path / "share", tmp_path / "inbox"
    share.mkdir()
    shutil.copy(workplace.submissions[0], share / "site.oneround")
    assert call("collect", share, "--out", inbox).code == 0
    arrived = (inbox / "site.oneround").stat().st_mtime
    os.utime(share / "site.oneround", (arrived + 60, arrived + 60))
    assert call("collect", share, "--out", inbox, "--json").json["known"] == ["site.oneround"]
    assert (inbox / "site.oneround").stat().st_mtime == arrived


def test_what_is_collected_is_for_the_coordinator_alone(
    call: Call, workplace: Workplace, tmp_path: Path
) -> None:
    share, inbox = tmp_path / "share", tmp_path / "inbox"
    share.mkdir()
    shutil.copy(workplace.submissions[0], share / "site.oneround")
    (share / "site.oneround").chmod(0o644)
    assert call("collect", share, "--out", inbox).code == 0
    assert stat.S_IMODE((inbox / "site.oneround").stat().st_mode) == 0o600


def test_one_bad_file_does_not_stop_the_others(
    call: Call, workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share, inbox = tmp_path / "share", tmp_path / "inbox"
    share.mkdir()
    shutil.copy(workplace.submissions[0], share / "north.oneround")
    size = (share / "north.oneround").stat().st_size
    (share / "a.oneround").write_bytes(bytes(size + 1))
    monkeypatch.setattr(carrier, "LIMIT_BYTES", size)
    outcome = call("collect", share, "--out", inbox, "--json")
    assert outcome.code == 1
    found = json.loads(outcome.out)
    assert found["fetched"] == ["north.oneround"]
    assert "larger than" in found["failed"]["a.oneround"]
    outcome = call("status", workplace.study, share.as_uri())
    assert "1 of any number of sites, 2 needed: not enough yet" in outcome.out
    assert "a.oneround: the file is larger than" in outcome.err


def test_not_enough_is_an_exit_code(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    (tmp_path / "north.oneround").write_bytes(b"PK\3\4")
    outcome = call("status", workplace.study, tmp_path)
    assert outcome.code == 1
    for part in ("refused", "truncated", "0 of any number of sites, 2 needed: not enough yet"):
        assert part in outcome.out


def test_only_submissions_are_sent(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    image = tmp_path / "scan.oneround"
    image.write_bytes(b"\x89PNG")
    outcome = call("submit", image, share)
    assert outcome.code == 1
    assert "no submission" in outcome.err
    plain = tmp_path / "north.oneround"
    shutil.copy(workplace.submissions[0], plain)
    (tmp_path / "north.oneround.age").write_bytes(b"age-encryption.org/v1\n")
    outcome = call("submit", plain, share)
    assert outcome.code == 1
    assert "the encrypted one is beside it" in outcome.err
    os.utime(tmp_path / "north.oneround.age", (0, 0))
    assert "is older" in call("submit", plain, share).err
    assert list(share.iterdir()) == []
    assert call("submit", plain, share, "--plain").code == 0
    assert call("submit", f"{plain}.age", share).code == 0
