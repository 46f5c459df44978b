from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tomlkit
import torch
from filelock import FileLock

from oneround.coordinator.aggregate import ensemble_of
from oneround.errors import OneRoundError
from oneround.evaluation import evaluate
from oneround.models.ensemble import average
from oneround.research.benchmark import cells, runner
from oneround.research.benchmark.grid import Bench, cells_of
from oneround.research.benchmark.runner import Outcome, run_bench
from oneround.submission import read_submissions
from tests.tiny import KANG2025, Watching

from .tiny_bench import CONTENT, bench

KANG: dict[str, Any] = {"method": "kang2025", "comparison": "equal FLOPs", "set": KANG2025}
ENTRIES = [
    {"method": "ensemble", "comparison": "reference"},
    {"method": "fedavg", "comparison": "reference"},
    {"method": "fedavg", "name": "2 rounds", "comparison": "reference", "set": ["rounds=2"]},
    KANG,
]
SMALL: dict[str, Any] = {"partitions": ["iid"], "seeds": [1], "entries": ENTRIES}


def run(small: Bench, folder: Path, out: str = "out", **options: Any) -> Outcome:
    return run_bench(small, data=folder, out=folder / out, command="oneround bench", **options)


def rows(folder: Path, out: str = "out") -> dict[str, cells.Cell]:
    return {row.entry: row for row in cells.read_cells(folder / out)}


def result(row: cells.Cell) -> dict[str, Any]:
    """All that does not depend on the machine's mood."""
    return row.model_dump(exclude={"seconds", "peak_memory_bytes"})


def test_every_cell_becomes_a_row(folder: Path) -> None:
    told: list[str] = []
    assert run(bench(**SMALL), folder, tell=told.append) == Outcome(4, 4)
    found = rows(folder)
    assert list(found) == ["ensemble", "fedavg", "2 rounds", "kang2025"]
    assert len({row.clients for row in found.values()}) == 1
    for row in found.values():
        assert row.command == f"oneround bench --only {row.cell}"
        assert row.data, row.partition == ("colors", "iid")
    assert found["fedavg"].flops == 0
    assert min(found["kang2025"].flops, found["2 rounds"].flops) > 0
    assert found["kang2025"].bytes_sent == found["fedavg"].bytes_sent < found["ensemble"].bytes_sent
    assert "4/4 equal FLOPs, kang2025: colors, iid, 2 sites, seed 1" in told[-1]
    curves = cells.read_curves(folder / "out")
    last = curves[found["kang2025"].cell][-1]
    assert last.accuracy == found["kang2025"].accuracy
    assert last.flops == found["kang2025"].flops

    small = next(iter(cells_of(bench(**SMALL), folder)))
    splits, study = small.setting.load()
    assert splits.test is not None
    handed_in = sorted((folder / "out" / "clients" / small.setting.hash).rglob("*.oneround"))
    ensemble = ensemble_of(read_submissions(handed_in, study), study)
    metrics = evaluate(average(ensemble), splits.test, study.image)
    assert found["fedavg"].accuracy == pytest.approx(metrics.accuracy, abs=1e-5)


def test_the_student_is_observed_on_its_way(folder: Path) -> None:
    entry = KANG | {"set": [*KANG2025, "distillation.steps=40", "distillation.batch_size=64"]}
    run(bench(**SMALL | {"entries": [entry]}), folder)
    (curve,) = cells.read_curves(folder / "out").values()
    flops = [point.flops for point in curve]
    assert flops == sorted(flops)
    assert all(point.flops >= 1e8 for point in curve[:-1]) or len(curve) == 1


def test_what_is_finished_is_not_done_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(bench(**SMALL | {"entries": ENTRIES[:2]}), folder)
    first = rows(folder)

    def forbidden(*args: object) -> None:
        raise AssertionError("client models are trained once")

    monkeypatch.setattr(runner, "train_sites", forbidden)
    assert run(bench(**SMALL), folder) == Outcome(4, 4), "two new entries, the same client models"
    assert {name: rows(folder)[name] for name in first} == first
    copy = folder / "copy"
    copy.mkdir()
    for name in ("cells.csv", "curves.csv"):
        (copy / name).write_bytes((folder / "out" / name).read_bytes())
    assert run(bench(**SMALL), folder, "copy") == Outcome(4, 4), "a table alone is enough"


def test_a_setting_is_never_compared_on_two_sets_of_client_models(folder: Path) -> None:
    """Another machine rounds otherwise, so client models trained anew are other models."""
    small = bench(**SMALL | {"entries": ENTRIES[:3]})
    run(small, folder)
    finished = cells.read_cells(folder / "out")
    other = folder / "other"
    other.mkdir()
    for row in finished[:2]:
        cells.append_cell(other, row.model_copy(update={"clients": "another machine's"}), [])
    told: list[str] = []
    assert run(small, folder, "other", tell=told.append) == Outcome(3, 3)
    assert told[0] == "colors, iid, 2 sites, seed 1: 2 cells run again, client models are missing"
    again = {row.entry: row.clients for row in cells.read_cells(other)}
    assert again == {row.entry: row.clients for row in finished}
    told.clear()
    run(small, folder, "other", tell=told.append)
    assert told == ["3 of 3 cells are finished already"]


@pytest.mark.parametrize("stage", ["training", "synthesis", "distillation"])
def test_an_interrupted_benchmark_goes_on(folder: Path, stage: str) -> None:
    small = bench(**SMALL | {"entries": ENTRIES[1:]})
    run(small, folder, "whole")

    def stop(name: str, done: int, total: int, note: str) -> None:
        if name == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small, folder, callbacks=[Watching(stop)])
    assert len(rows(folder)) < 3
    assert run(small, folder) == Outcome(3, 3)
    for name, row in rows(folder).items():
        assert result(row) == result(rows(folder, "whole")[name])


def test_a_cell_that_fails_does_not_stop_the_rest(folder: Path) -> None:
    diverging = KANG | {"set": [*KANG2025, "distillation.learning_rate=1e30"]}
    small = bench(**SMALL | {"entries": [diverging, ENTRIES[1]]})
    outcome = run(small, folder)
    assert (outcome.wanted, outcome.finished) == (2, 1)
    ((cell, reason),) = outcome.failed.items()
    assert cell == "equal FLOPs, kang2025: colors, iid, 2 sites, seed 1"
    assert "not finite" in reason
    assert list(rows(folder)) == ["fedavg"]
    assert run(small, folder).failed == outcome.failed, "it is tried again"


def test_one_cell_alone(folder: Path) -> None:
    small = bench(**SMALL)
    key = list(cells_of(small, folder))[1].hash
    assert run(small, folder, only=[key]) == Outcome(1, 1)
    assert list(rows(folder)) == ["fedavg"]
    with pytest.raises(OneRoundError, match="no cell nowhere"):
        run(small, folder, only=["nowhere"])


def test_the_same_entry_twice_is_refused(folder: Path) -> None:
    twice = [ENTRIES[0], ENTRIES[0] | {"name": "again"}]
    with pytest.raises(OneRoundError, match="are the same"):
        run(bench(**SMALL | {"entries": twice}), folder)


def test_one_process_at_a_time(folder: Path) -> None:
    (folder / "out").mkdir()
    with FileLock(folder / "out" / ".lock"), pytest.raises(OneRoundError, match="another bench"):
        run(bench(**SMALL), folder)


def test_threads_are_those_of_the_benchmark_and_then_as_before(folder: Path) -> None:
    before = torch.get_num_threads()
    run(bench(**SMALL | {"entries": ENTRIES[:1], "threads": before + 1}), folder)
    assert torch.get_num_threads() == before


def test_two_processes_do_the_same_as_one_even_if_they_are_killed(folder: Path) -> None:
    pytest.importorskip("distributed")
    killed = []

    def tell(line: str) -> None:
        if not killed and not line.endswith("already"):  # the first of three cells has ended
            for process in multiprocessing.active_children():
                process.kill()
                killed.append(process)

    diverging = KANG | {"name": "x", "set": [*KANG2025, "distillation.learning_rate=1e30"]}
    small = bench(**SMALL | {"entries": [*ENTRIES[2:], diverging]})
    outcome = run(small, folder, "one")
    assert (outcome.wanted, outcome.finished, len(outcome.failed)) == (3, 2, 1)
    assert run(small, folder, "two", workers=2, tell=tell) == outcome
    assert len(killed) == 2

    def of(out: str) -> list[dict[str, Any]]:
        found = cells.read_cells(folder / out)
        return sorted((result(row) for row in found), key=lambda row: str(row["cell"]))

    assert of("two") == of("one")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_killed_benchmark_goes_on(folder: Path) -> None:
    """The real command, and SIGKILL."""
    entry = KANG | {"set": [*KANG2025, "distillation.steps=4000"]}
    content = CONTENT | SMALL | {"entries": [ENTRIES[1], entry]}
    file = folder / "bench.toml"
    file.write_text(tomlkit.dumps(content), encoding="utf-8")
    command = [sys.executable, "-m", "oneround", "bench", str(file), "--out", str(folder / "out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    ) as process:
        checkpoint = "runs/*/distillation/checkpoint.pt"
        limit = time.monotonic() + 60
        while not list((folder / "out").glob(checkpoint)) and time.monotonic() < limit:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert list(rows(folder)) == ["fedavg"]
    quick = bench(**content)
    with pytest.raises(KeyboardInterrupt):
        run(quick, folder, callbacks=[Watching(_first_step)])
    assert len(rows(folder)) == 1


def _first_step(name: str, done: int, total: int, note: str) -> None:
    if name == "distillation":
        assert done > 1, "it goes on from the checkpoint"
        raise KeyboardInterrupt
