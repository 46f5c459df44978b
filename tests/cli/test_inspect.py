from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Call, Workplace


def test_an_accepted_submission(call: Call, workplace: Workplace) -> None:
    file = workplace.submissions[0]
    content = call("inspect", file, "--study", workplace.study, "--json").json
    assert content["accepted"]
    assert content["manifest"]["site"] == "north"
    assert [problem["code"] for problem in content["problems"]] == ["few-images"]
    text = call("inspect", file)
    assert text.code == 0
    assert f"{file}: accepted" in text.out
    assert content["sha256"] in text.out


def test_a_refused_one(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    damaged = tmp_path / "north.oneround"
    damaged.write_bytes(workplace.submissions[0].read_bytes()[:5000])
    outcome = call("inspect", damaged, "--json")
    assert outcome.code == 1
    content = json.loads(outcome.out)
    assert not content["accepted"]
    assert content["manifest"] is None
    assert all(problem["remedy"] for problem in content["problems"])
    text = call("inspect", damaged)
    assert text.code == 1
    assert "refused" in text.out
    assert "Remedy" in text.out


def test_of_another_study(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    call("study", "init", tmp_path / "other.toml", "--classes", "a,b")
    outcome = call("inspect", workplace.submissions[0], "--study", tmp_path / "other.toml")
    assert outcome.code == 1
    assert "[other-study]" in outcome.out
