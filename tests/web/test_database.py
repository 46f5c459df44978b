from __future__ import annotations

import stat
from pathlib import Path

import pytest

from oneround.errors import OneRoundError, Problem
from oneround.web.database import FILE, SESSION_SECONDS, Receipt, State


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path)


def test_a_token_becomes_a_session(state: State) -> None:
    token = state.new_token("north")
    assert len(token) >= 43, "256 bits in base 64"
    session = state.log_in(token)
    assert state.visitor(session).site == "north"
    assert state.visitor(state.log_in(state.new_token(None))).site is None


@pytest.mark.parametrize("strange", ["", "x", "a" * 4000, "\0", "日本", "\udcff", "' OR 1=1 --"])
def test_any_other_text_is_no_token_and_no_session(state: State, strange: str) -> None:
    token = state.new_token("north")
    assert state.log_in(strange) is None
    assert state.log_in(token + strange) is None or not strange
    assert state.log_in(token[:-1]) is None
    assert state.visitor(strange) is None
    assert state.visitor(token) is None


def test_once_is_once(state: State) -> None:
    first = state.new_token(None, once=True)
    session = state.log_in(first)
    assert state.visitor(session)
    assert state.log_in(first) is None
    assert state.tokens() == []
    second = state.new_token(None, once=True)
    assert state.visitor(session) is None, "its link is of an earlier start"
    assert state.log_in(second)


def test_revoked_tokens_end_their_sessions(state: State) -> None:
    token, other = state.new_token("north"), state.new_token("south")
    session, kept = state.log_in(token), state.log_in(other)
    assert [t.site for t in state.tokens()] == ["north", "south"]
    assert state.revoke("north") == 1
    assert state.revoke("north") == 0
    assert state.log_in(token) is None
    assert state.visitor(session) is None
    assert state.visitor(kept)


def test_sessions_expire_and_end(tmp_path: Path) -> None:
    now = [0.0]
    state = State(tmp_path, clock=lambda: now[0])
    token = state.new_token("north")
    old, other = state.log_in(token), state.log_in(token)
    assert state.visitor(old).csrf != state.visitor(other).csrf
    state.log_out(other)
    assert state.visitor(other) is None
    now[0] = SESSION_SECONDS - 1
    assert state.visitor(old)
    now[0] = SESSION_SECONDS
    assert state.visitor(old) is None


def test_no_secret_is_in_the_file(tmp_path: Path) -> None:
    with State(tmp_path) as state:
        token = state.new_token("north")
        session = state.log_in(token)
        content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert b"north" in content
        for secret in (token, session, state.visitor(session).csrf):
            assert secret.encode() not in content
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, "others on the machine cannot read it"


def test_receipts_are_kept(tmp_path: Path) -> None:
    problem = Problem("late-x", "it is", "why", "do", fatal=False)
    receipt = Receipt("north", "north.oneround", "ab", 3, 9, "2027", True, False, (problem,))
    with State(tmp_path) as state:
        assert state.add(receipt) == 1
    with State(tmp_path) as state:
        assert state.receipts() == state.receipts("north", 1) == {1: receipt}
        assert state.receipt(1) == receipt
        assert state.receipts("south") == {}
        assert state.receipt(2) is None


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OneRoundError, match="cannot be kept") as caught:
        State(tmp_path / "missing")
    assert "--inbox" in caught.value.remedy


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"x" * 5000)
    with pytest.raises(OneRoundError, match="not a database"):
        State(tmp_path)


def test_log_in_on_a_full_disk(tmp_path: Path) -> None:
    """A token that may be used again opens a session that is kept in memory; one that may be used
    once does not, since that could not be written down."""
    with State(tmp_path) as state:
        token, once = state.new_token("north"), state.new_token(None, once=True)
        state._database.execute("PRAGMA query_only = ON")  # every write fails
        session = state.log_in(token)
        assert session is not None
        assert state.visitor(session).site == "north"
        with pytest.raises(OneRoundError, match="Make room"):
            state.log_in(once)
        state._database.execute("PRAGMA query_only = OFF")
        assert state.log_in(once) is not None
        state.revoke("north")
        assert state.visitor(session) is None


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    with State(tmp_path) as state:
        state.new_token("north")
    (tmp_path / FILE).write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 40)
    with pytest.raises(OneRoundError) as caught, State(tmp_path) as state:
        state.log_in("x")
    assert caught.value.file == str(tmp_path / FILE)
    assert caught.value.remedy
