from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oneround.coordinator.results import Models, Results, SubmissionRecord
from oneround.errors import OneRoundError
from oneround.runs.cost import Cost


def results(**changes: Any) -> Results:
    facts: dict[str, Any] = {
        "oneround": "0",
        "command": "oneround distill",
        "created": "2025-01-31T12:00:00+00:00",
        "method": "x",
        "study": {"name": "tiny", "hash": "0" * 64},
        "seeds": {"study": 0, "run": 0},
        "versions": {},
        "options": {},
        "cost": {"synthesis": Cost(flops=7, seconds=1.5, peak_memory_bytes=3), "bytes_sent": 12},
        "class_counts": {"north": (1, 2)},
        "submissions": [
            SubmissionRecord(site="north", file="n", sha256="0", bytes=12, architecture="a")
        ],
        "hashes": {},
    }
    return Results(**(facts | changes))


def test_round_trip(tmp_path: Path) -> None:
    results().write(tmp_path)
    assert Results.read(tmp_path) == results()


def test_names_in_the_file_are_those_of_the_documentation(tmp_path: Path) -> None:
    results().write(tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["schema"] == 1
    assert set(content["models"]) == {"sites", "fedavg", "ensemble", "rules", "global"}
    assert content["cost"]["synthesis"] == {"flops": 7, "seconds": 1.5, "peak_memory_bytes": 3}
    assert content["cost"]["bytes_sent"] == 12
    assert content["class_counts"] == {"north": [1, 2]}


def test_not_evaluated_is_null() -> None:
    assert Models().model_dump(by_alias=True)["global"] is None


def test_another_schema_is_refused(tmp_path: Path) -> None:
    results().write(tmp_path)
    path = tmp_path / "results.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(OneRoundError, match="schema") as caught:
        Results.read(tmp_path)
    assert caught.value.file == str(path)
    with pytest.raises(OneRoundError, match=r"results\.json"):
        Results.read(tmp_path / "missing")
