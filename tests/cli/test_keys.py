from __future__ import annotations

from pathlib import Path

import pytest

from oneround import signing
from tests.cli.conftest import Call


def test_a_pair_to_sign_with(call: Call, tmp_path: Path) -> None:
    content = call("keys", "new", tmp_path / "north", "--json").json
    assert content["private"] == str(tmp_path / "north.key")
    shown = call("keys", "show", content["public"], "--json").json
    assert shown == {
        "fingerprint": content["is"],
        "key": signing.public_key_of(content["private"]),
    }
    again = call("keys", "new", tmp_path / "north")
    assert again.code == 1
    assert "a key is never replaced" in again.err


def test_a_pair_to_encrypt_to(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEROUND_PASSPHRASE", "open sesame")
    outcome = call("keys", "new", tmp_path / "coordinator", "--encryption", "--passphrase")
    assert outcome.code == 0, outcome.err
    assert signing.read_recipient(tmp_path / "coordinator.recipient") in outcome.out
    assert signing.needs_passphrase(tmp_path / "coordinator.identity")
    signing.Identity(tmp_path / "coordinator.identity", "open sesame")
