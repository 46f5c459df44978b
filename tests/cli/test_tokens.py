from __future__ import annotations

from pathlib import Path

from oneround.web.database import State
from tests.cli.conftest import Call


def test_make_list_and_revoke(call: Call, tmp_path: Path) -> None:
    token = call("tokens", "new", "north", "--inbox", tmp_path).out.splitlines()[0]
    own = call("tokens", "new", "--coordinator", "--inbox", tmp_path, "--json").json["token"]
    with State(tmp_path) as state:
        assert state.visitor(state.log_in(token)).site == "north"
        assert state.visitor(state.log_in(own)).site is None
    listed = call("tokens", "list", "--inbox", tmp_path).out
    assert "north" in listed
    assert "(coordinator)" in listed
    assert token not in listed
    sites = [entry["site"] for entry in call("tokens", "list", "--inbox", tmp_path, "--json").json]
    assert sites == [None, "north"]
    assert (
        "1 token(s) of north revoked" in call("tokens", "revoke", "north", "--inbox", tmp_path).out
    )
    with State(tmp_path) as state:
        assert state.log_in(token) is None
    assert call("tokens", "revoke", "--coordinator", "--inbox", tmp_path, "--json").json == {
        "site": None, "revoked": 1,
    }  # fmt: skip


def test_whose(call: Call, tmp_path: Path) -> None:
    for strange in ([], ["north", "--coordinator"], ["../north"], ["-"], ["a\nb"], ["x" * 65]):
        outcome = call("tokens", "new", *strange, "--inbox", tmp_path)
        assert outcome.code == 1
        assert "Remedy" in outcome.err
    assert list(tmp_path.iterdir()) == []
