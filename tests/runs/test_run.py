from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path
from threading import Timer

import pytest

from oneround.errors import OneRoundError
from oneround.runs.cost import Cost
from oneround.runs.run import PROGRESS, Run, environment, is_working
from tests.tiny import Watching

OPTIONS = {"method": "x", "options": {"steps": 3, "noise": {"kinds": ["a", "b"]}}}


def test_leaves_configuration_and_log(tmp_path: Path) -> None:
    with Run(tmp_path / "new" / "run", OPTIONS) as run:
        stage = run.stage("synthesis", folder="bank")
        assert not (run.path / "bank").exists(), "no folder for what keeps nothing"
        assert stage.file("000.json") == run.path / "bank" / "000.json"
    assert json.loads((run.path / "configuration.json").read_text()) == OPTIONS
    log = (run.path / "log.txt").read_text()
    assert [line.split(" ", 3)[3] for line in log.splitlines()] == [
        "started",
        "stage synthesis",
        "finished",
    ]
    assert (run.path / "bank").is_dir()


def test_a_failure_is_logged_and_the_folder_is_free_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Run(tmp_path, OPTIONS):
        raise ZeroDivisionError("by zero")
    assert "stopped: by zero" in (tmp_path / "log.txt").read_text()
    with Run(tmp_path, OPTIONS, resume=True):
        pass
    assert "resumed" in (tmp_path / "log.txt").read_text()


def test_ctrl_c_is_in_the_log(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Run(tmp_path, OPTIONS):
        raise KeyboardInterrupt
    assert "stopped: KeyboardInterrupt" in (tmp_path / "log.txt").read_text()


def test_progress_is_noted_at_most_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, told = [0.0], []
    monkeypatch.setattr("oneround.runs.run.time.monotonic", lambda: now[0])
    with Run(tmp_path, OPTIONS, callbacks=[Watching(lambda *step: told.append(step))]) as run:
        assert not (tmp_path / PROGRESS).exists()
        stage, noted = run.stage("synthesis"), []
        for step in range(25):
            now[0] = step / 10
            stage.tell(step, 25, "a note")
            noted.append(json.loads((tmp_path / PROGRESS).read_text())["done"])
    assert noted == [0] * 10 + [10] * 10 + [20] * 5
    assert [done for _, done, *_ in told] == list(range(25)), "nobody else misses anything"
    last = json.loads((tmp_path / PROGRESS).read_text())
    time = last.pop("time")
    assert last == {"stage": "synthesis", "done": 20, "total": 25, "note": "a note"}
    assert time.endswith("+00:00")


def test_a_run_goes_on_when_progress_cannot_be_noted(tmp_path: Path) -> None:
    with Run(tmp_path, OPTIONS) as run:
        (tmp_path / PROGRESS).mkdir()
        run.stage("synthesis").tell(1, 2)
        assert list((tmp_path / PROGRESS).iterdir()) == []
    assert "finished" in (tmp_path / "log.txt").read_text()


def test_whether_somebody_works_in_a_folder(tmp_path: Path) -> None:
    assert not is_working(tmp_path / "missing")
    assert not is_working(tmp_path)
    with Run(tmp_path, OPTIONS):
        assert is_working(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    assert not is_working(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_look_at_the_lock_keeps_nobody_out(tmp_path: Path) -> None:
    """One that is held longer than a look ever takes."""
    with Run(tmp_path, OPTIONS):
        pass
    with (tmp_path / ".lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        Timer(0.1, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        with Run(tmp_path, OPTIONS, resume=True):
            pass


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """A second process holds the lock; killed, it holds nothing."""
    with Run(tmp_path, OPTIONS):
        pass
    code = (
        "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); "
        "lock.acquire(timeout=0); print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as other:
        other.stdout.readline()
        with (
            pytest.raises(OneRoundError, match="another process is working") as caught,
            Run(tmp_path, OPTIONS, resume=True),
        ):
            pass
        other.kill()
    assert caught.value.file == str(tmp_path)
    assert "Wait" in caught.value.remedy
    with Run(tmp_path, OPTIONS, resume=True):
        pass


def test_a_finished_run_is_not_overwritten(tmp_path: Path) -> None:
    with Run(tmp_path, OPTIONS):
        pass
    with (
        pytest.raises(OneRoundError, match="already holds a run") as caught,
        Run(tmp_path, OPTIONS),
    ):
        pass
    assert "--resume" in caught.value.remedy


def test_resuming_with_other_options_names_them(tmp_path: Path) -> None:
    with Run(tmp_path, OPTIONS):
        pass
    other = {"method": "x", "options": {"steps": 4, "noise": {"kinds": ["b"]}}, "seed": 0}
    with (
        pytest.raises(OneRoundError) as caught,
        Run(tmp_path, other, resume=True),
    ):
        pass
    assert "options.noise.kinds, options.steps, seed" in caught.value.reason
    assert json.loads((tmp_path / "configuration.json").read_text()) == OPTIONS


def test_resume_may_also_be_the_first_time(tmp_path: Path) -> None:
    with Run(tmp_path, OPTIONS, resume=True):
        pass
    assert (tmp_path / "configuration.json").exists()


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("")
    for resume in (False, True):
        with (
            pytest.raises(OneRoundError, match=r"not empty and holds no run \(thesis.docx"),
            Run(tmp_path, OPTIONS, resume=resume),
        ):
            pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.docx"]


def test_what_a_kill_left_behind_does_not_count(tmp_path: Path) -> None:
    """A half-written configuration, for one."""
    (tmp_path / ".configuration.json.x1y2.part").write_text('{"me')
    with Run(tmp_path, OPTIONS):
        pass


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(OneRoundError, match="cannot be used as RUN folder"):
        Run(tmp_path / "run", OPTIONS).__enter__()


def test_stages_and_their_parts(tmp_path: Path) -> None:
    with Run(tmp_path, OPTIONS, seed=5) as run:
        for number, site in enumerate(("north", "south")):
            stage = run.stage("training", site, folder="sites")
            stage.cost = Cost(flops=10, seconds=1.0, peak_memory_bytes=number)
            stage.log({"epoch": number})
            assert stage.file("state.pt") == tmp_path / "sites" / site / "state.pt"
        run.stage("distillation").log({"step": 7})
    assert run.stages["training/north"].seed == 5
    assert run.costs()["training"] == Cost(flops=20, seconds=2.0, peak_memory_bytes=1)
    assert run.curves() == {
        "training": {"north": [{"epoch": 0}], "south": [{"epoch": 1}]},
        "distillation": [{"step": 7}],
    }


def test_environment_names_versions() -> None:
    assert {"python", "oneround", "torch", "monai", "threads"} <= environment().keys()
