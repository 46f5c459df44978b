from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from oneround.errors import OneRoundError, Problem
from oneround.files import read_json, write_atomic, write_json


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OneRoundError, match="No space left on device") as caught:
        write_atomic(path, b"new")
    assert caught.value.file == str(path)
    assert "Make room" in caught.value.remedy
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_no_folder_to_write_to(tmp_path: Path) -> None:
    with pytest.raises(OneRoundError, match="cannot write"):
        write_atomic(tmp_path / "missing" / "file", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OneRoundError, match="cannot write"):
        write_atomic(tmp_path / "folder", b"")
    assert os.listdir(tmp_path) == ["folder"]


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": [1, None, "é"]})
    assert read_json(path) == {"a": [1, None, "é"]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": [1, None, "é"]}


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000])
def test_not_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(OneRoundError, match="cannot be read as JSON") as caught:
        read_json(path)
    assert caught.value.file == str(path)
    with pytest.raises(OneRoundError):
        read_json(tmp_path / "missing.json")


def test_errors_read_well() -> None:
    error = OneRoundError("it is broken.", file="a.npz", remedy="Mend it.")
    assert str(error) == "a.npz: it is broken. Remedy: Mend it."
    assert str(OneRoundError("it is broken.")) == "it is broken."
    problem = Problem("code", "what", "Why.", "Mend it.")
    assert str(problem) == "[code] what. Why. Remedy: Mend it."
