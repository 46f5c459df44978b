from __future__ import annotations

from pathlib import Path

from cli.conftest import Call, Workplace


def test_one_run_folder(workplace: Workplace) -> None:
    names = {p.name for p in workplace.run.iterdir()}
    assert {
        "global.safetensors", "config.json", "results.json", "report.html", "configuration.json",
        "log.txt", "bank",
    } <= names  # fmt: skip


def test_prints_json(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    content = call(
        "distill", workplace.study, *workplace.submissions, "--out", tmp_path / "run",
        "--method", "ensemble", "--set", "rule=logits", "--seed", 3, "--json",
    ).json  # fmt: skip
    assert content["method"] == "ensemble"
    assert content["options"]["options"] == {"rule": "logits"}
    assert content["seeds"]["run"] == 3
    assert [s["site"] for s in content["submissions"]] == ["north", "south"]


def test_bad_submissions_are_all_named(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    damaged = tmp_path / "west.oneround"
    damaged.write_bytes(b"not a submission")
    again = tmp_path / "copy.oneround"
    again.write_bytes(workplace.submissions[0].read_bytes())
    out = tmp_path / "run"
    outcome = call("distill", workplace.study, *workplace.submissions, damaged, again, "--out", out)
    assert outcome.code == 1
    assert str(damaged) in outcome.err
    assert "all from 'north'" in outcome.err
    assert "Remedy" in outcome.err
    assert not out.exists()


def test_a_finished_run_is_kept(call: Call, workplace: Workplace) -> None:
    command = ["distill", workplace.study, *workplace.submissions, "--out", workplace.run]
    outcome = call(*command)
    assert outcome.code == 1
    assert "--resume" in outcome.err
    outcome = call(*command, "--resume", "--seed", 1)
    assert outcome.code == 1
    assert "seed" in outcome.err


def test_options_that_do_not_exist(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    command = ["distill", workplace.study, *workplace.submissions, "--out", tmp_path / "run"]
    for option, reason in (
        (["--method", "magic"], "no method 'magic'"),
        (["--preset", "fast"], "no preset 'fast'"),
        (["--set", "inversion.speed=3"], "inversion.speed"),
    ):
        outcome = call(*command, *option)
        assert outcome.code == 1
        assert reason in outcome.err
