from __future__ import annotations

from pathlib import Path

from tests import tiny
from tests.cli.conftest import Call, Workplace


def test_one_run_folder(workplace: Workplace) -> None:
    names = {p.name for p in workplace.run.iterdir()}
    assert {
        "global.safetensors", "config.json", "results.json", "report.html", "configuration.json",
        "log.txt", "bank",
    } <= names  # fmt: skip


def test_prints_json(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    content = call(
        "aggregate", workplace.study, *workplace.submissions, "--out", tmp_path / "run",
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
    outcome = call(
        "aggregate", workplace.study, *workplace.submissions, damaged, again, "--out", out
    )
    assert outcome.code == 1
    assert str(damaged) in outcome.err
    assert "all from 'north'" in outcome.err
    assert "Remedy" in outcome.err
    assert not out.exists()


def test_a_finished_run_is_kept(call: Call, workplace: Workplace) -> None:
    command = ["aggregate", workplace.study, *workplace.submissions, "--out", workplace.run]
    outcome = call(*command)
    assert outcome.code == 1
    assert "--resume" in outcome.err
    outcome = call(*command, "--resume", "--seed", 1)
    assert outcome.code == 1
    assert "seed" in outcome.err


def test_options_that_do_not_exist(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    command = ["aggregate", workplace.study, *workplace.submissions, "--out", tmp_path / "run"]
    for option, reason in (
        (["--method", "magic"], "no method 'magic'"),
        (["--preset", "fast"], "no preset 'fast'"),
        (["--set", "inversion.speed=3"], "inversion.speed"),
    ):
        outcome = call(*command, *option)
        assert outcome.code == 1
        assert reason in outcome.err


def test_a_site_comes_late_and_another_leaves(
    call: Call, workplace: Workplace, tmp_path: Path
) -> None:
    north, south = workplace.submissions
    options = [part for option in tiny.HEADFIT for part in ("--set", option)]
    one, two, three = tmp_path / "one", tmp_path / "two", tmp_path / "three"
    assert call("aggregate", workplace.study, north, "--out", one, *options).code == 0
    late = call("aggregate", workplace.study, north, south, "--extend", one, "--out", two)
    assert late.code == 0, late.err
    assert "added south for" in late.out
    forgotten = call("aggregate", workplace.study, south, "--extend", two, "--out", three)
    assert forgotten.code == 1
    assert "no file of north is given" in forgotten.err
    left = call(
        "aggregate", workplace.study, south, "--extend", two, "--without", "north", "--out", three
    )
    assert left.code == 0, left.err
    told = " ".join(left.out.split())
    assert "nothing of north is in it" in told
    assert "the RUN folder one" in told
    assert "the RUN folder two" in told
    assert "north withdrew" in (three / "model-card.md").read_text()


def test_an_extension_has_the_method_of_the_run_whatever_the_preset(
    call: Call, workplace: Workplace, tmp_path: Path
) -> None:
    north, south = workplace.submissions
    one, two = tmp_path / "one", tmp_path / "two"
    assert call("aggregate", workplace.study, north, "--method", "fedavg", "--out", one).code == 0
    late = call(
        "aggregate", workplace.study, north, south,
        "--extend", one, "--preset", "paper", "--out", two,
    )  # fmt: skip
    assert late.code == 1
    assert "fedavg cannot be extended" in " ".join(late.err.split())


def test_excluded_site_is_passed_over(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    """Whatever is wrong with its file."""
    north, south = workplace.submissions
    options = [f"--set={option}" for option in tiny.HEADFIT]
    files = [workplace.study, north, south]
    alone = call("aggregate", workplace.study, north, "--out", tmp_path / "alone", *options)
    assert alone.code == 0
    call("aggregate", *files, "--exclude", "south", "--out", tmp_path / "two", *options)
    one, two = ((tmp_path / name / "global.safetensors") for name in ("alone", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_start_is_a_site_that_submitted(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    command = ["aggregate", workplace.study, *workplace.submissions]
    options = [f"--set={option}" for option in tiny.HEADFIT]
    outcome = call(*command, "--start", "nobody", "--out", tmp_path / "x")
    assert outcome.code == 1
    assert "no submission of nobody" in outcome.err
    for site in ("north", "south"):
        outcome = call(*command, "--start", site, "--out", tmp_path / site, *options)
        assert f"those of the client model of {site}" in " ".join(outcome.out.split())


def test_names_of_the_version_before(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    options = [f"--set={option}" for option in tiny.HEADFIT]
    files = [workplace.study, *workplace.submissions]
    old = call("distill", *files, "--method", "oneround", "--out", tmp_path / "old", *options)
    assert old.code == 0
    assert "note: the command distill is called aggregate now; use that." in old.err
    assert "note: the method oneround is called headfit now; use that." in old.err
    new = call("aggregate", *files, "--out", tmp_path / "new", *options)
    assert new.code == 0
    assert "note:" not in new.err
    weights = [tmp_path / name / "global.safetensors" for name in ("old", "new")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    results = (tmp_path / "old" / "results.json").read_text("utf-8")
    assert '"method": "headfit"' in results
