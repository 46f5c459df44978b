from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from oneround.coordinator.aggregate import aggregate
from oneround.errors import OneRoundError
from oneround.runs.callbacks import Callback
from oneround.runs.run import PROGRESS, Run
from oneround.submission import Submission
from oneround.web.progress import RunState, run_state
from tests import tiny


def test_nobody_has_begun(tmp_path: Path) -> None:
    assert run_state(tmp_path / "run") == RunState("waiting")
    assert run_state(tmp_path) == RunState("waiting")


def test_a_run_from_beginning_to_end(tmp_path: Path, submissions: list[Submission]) -> None:
    run, seen = tmp_path / "run", []

    class Look(Callback):
        def on_progress(self, *step: object) -> None:
            seen.append(run_state(run))

    aggregate(tiny.STUDY, submissions, out=run, options=tiny.HEADFIT, callbacks=[Look()])
    assert {state.phase for state in seen} == {"running"}
    assert seen[0].step.done == 1, "what others read is written first"
    assert seen[-1].step.stage
    assert 0 <= seen[-1].step.done <= seen[-1].step.total
    done = run_state(run)
    assert done.phase == "done"
    assert [name for name, _ in done.files] == ["global.safetensors", "config.json"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OneRoundError("no room.\nat all", remedy="more"), "no room."),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_a_run_that_stops(tmp_path: Path, error: BaseException, reason: str) -> None:
    with suppress(type(error)), Run(tmp_path, {}) as run:
        run.stage("synthesis").tell(3, 9, "x")
        raise error
    state = run_state(tmp_path)
    assert (state.phase, state.reason, state.step.done) == ("stopped", reason, 3)


def test_a_run_that_is_killed(tmp_path: Path) -> None:
    """Its log says nothing of an end, or is about the run before."""
    with pytest.raises(ZeroDivisionError), Run(tmp_path, {}):
        raise ZeroDivisionError
    if not os.fork():
        run = Run(tmp_path, {}, resume=True).__enter__()
        run.stage("synthesis").tell(1, 2)
        os._exit(0)
    os.wait()
    state = run_state(tmp_path)
    assert (state.phase, state.reason, state.step.done) == ("stopped", "", 1)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"stage": 1}', b"\xff", b"[" * 100_000])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    with Run(tmp_path, {}):
        (tmp_path / PROGRESS).write_bytes(content)
        assert run_state(tmp_path) == RunState("running")
