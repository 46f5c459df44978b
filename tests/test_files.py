from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from oneround.errors import OneRoundError, Problem
from oneround.files import (
    exclusive,
    hidden_part,
    parse_toml,
    part_name,
    read_json,
    remove_abandoned,
    settle,
    write_atomic,
    write_json,
)


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


def test_parts_of_killed_processes_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    mine = part_name("file")
    dead = mine.replace(f"-{os.getpid()}-", f"-{ended.pid}-")
    elsewhere = mine.replace(mine[6:14], "0" * 8)
    others = dead.replace(".file.", ".another.")
    old = ".file.from-an-earlier-version.part"
    for name in (mine, dead, elsewhere, others, old):
        (tmp_path / name).write_bytes(b"half")
    os.utime(tmp_path / old, (0, 0))
    write_atomic(tmp_path / "file", b"whole")
    assert set(os.listdir(tmp_path)) == {"file", mine, elsewhere, others}
    remove_abandoned(tmp_path)
    assert set(os.listdir(tmp_path)) == {"file", mine, elsewhere}


def test_a_killed_process_leaves_the_old_file_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom oneround.files import hidden_part\n"
        "with hidden_part(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, path], check=False)
    assert path.read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 2
    write_atomic(path, b"new")
    assert os.listdir(tmp_path) == ["file"]


def test_no_other_file_is_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with hidden_part(path) as part:
        path.write_bytes(b"of another process")
        with pytest.raises(FileExistsError):
            settle(part, path, replace=False)
    assert path.read_bytes() == b"of another process"
    assert os.listdir(tmp_path) == ["file"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path),
        pytest.raises(OneRoundError, match="another process") as caught,
        exclusive(tmp_path, seconds=0),
    ):
        raise AssertionError
    assert caught.value.remedy
    with exclusive(tmp_path):
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("text", ["x = " + "9" * 5000, "x = " + "[" * 5000, "x = 1\nx = 2"])
def test_not_toml(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_toml(text)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000, b"9" * 5000])
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
