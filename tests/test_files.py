from __future__ import annotations

import errno
import os
import pickle
import stat
from pathlib import Path

import pytest
import torch

from oneround.errors import OneRoundError, Problem
from oneround.files import read_json, write_atomic, write_json
from oneround.runs.checkpoint import load_state, save_state


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


def test_state_round_trip(tmp_path: Path) -> None:
    state = {"step": 3, "tensors": {"a": torch.arange(4.0)}, "curve": [{"loss": 0.1}], "name": "é"}
    save_state(tmp_path / "state.pt", state)
    loaded = load_state(tmp_path / "state.pt")
    assert torch.equal(loaded.pop("tensors")["a"], torch.arange(4.0))
    assert loaded == {"step": 3, "curve": [{"loss": 0.1}], "name": "é"}


def test_a_checkpoint_of_another_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GPU that this machine may not have."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        save_state(tmp_path / "state.pt", {"a": torch.arange(4.0)})
    assert torch.equal(load_state(tmp_path / "state.pt")["a"], torch.arange(4.0))


def test_damaged_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"a": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(OneRoundError, match="damaged") as caught:
        load_state(path)
    assert caught.value.file == str(path)
    assert "Delete it" in caught.value.remedy


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


def test_nothing_but_plain_data_is_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, "saved.pt")
    Path("raw.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ("saved.pt", "raw.pt"):
        with pytest.raises(OneRoundError):
            load_state(name)
    assert not Path("pwned").exists()


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
