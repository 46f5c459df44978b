from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from oneround.errors import OneRoundError
from oneround.runs.checkpoint import load_state, save_state


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


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(2), "text"])
def test_checkpoint_of_something_else(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "state.pt")
    with pytest.raises(OneRoundError, match="damaged"):
        load_state(tmp_path / "state.pt")


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
