from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests import tiny
from tests.cli.conftest import Call, Workplace


def test_metrics_on_local_images(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    model = workplace.run / "global.safetensors"
    content = call("evaluate", model, "--data", workplace.data, "--out", file, "--json").json
    assert json.loads(file.read_text()) == content
    assert content["split"] == "test"
    assert content["images"] == 24
    assert {"accuracy", "balanced_accuracy", "auroc"} <= content["intervals"].keys()
    text = call("evaluate", model, "--data", workplace.data, "--out", file)
    assert text.code == 0
    assert f"written to {file}" in text.out
    words = " ".join(text.out.split())
    low, high = content["intervals"]["accuracy"]
    assert f" accuracy {content['accuracy']:.3f} {low:.3f}–{high:.3f} " in words
    low, high = content["class_intervals"]["recall"]["red"]
    assert f" sensitivity (recall) {content['recall']['red']:.3f} {low:.3f}–{high:.3f} " in words
    assert f" prevalence {content['prevalence']['red']:.3f} " in words


def test_any_model_and_any_split(call: Call, workplace: Workplace) -> None:
    for model in (workplace.run, workplace.submissions[0]):
        command = ["evaluate", model, "--data", workplace.data, "--split", "val", "--json"]
        assert call(*command).json["split"] == "val"


def test_no_such_split(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path, tiny.images(6))
    outcome = call("evaluate", workplace.run, "--data", folder, "--split", "val")
    assert outcome.code == 1
    assert "no val image" in outcome.err
    assert call("evaluate", workplace.run, "--data", folder, "--json").json["split"] == "train"


@pytest.mark.parametrize(("place", "reason"), [("no/such/m.json", "missing"), (".", "is a folder")])
def test_where_nothing_can_be_written_is_said_before_the_work(
    call: Call, workplace: Workplace, tmp_path: Path, place: str, reason: str
) -> None:
    for command in (["evaluate", "--data", "no data"], ["predict", "no image"]):
        outcome = call(command[0], workplace.run, *command[1:], "--out", tmp_path / place)
        assert outcome.code == 1
        assert f"cannot write: {'its folder is ' if place[0] == 'n' else ''}{reason}" in outcome.err


def test_other_classes(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path, tiny.images(6, classes=("red", "pink")))
    outcome = call("evaluate", workplace.run, "--data", folder)
    assert outcome.code == 1
    assert "'pink' is not a class of the study" in outcome.err


def test_metrics_that_are_sent_back(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(workplace.run, run)
    files = []
    for file in workplace.submissions:
        site, back = file.stem, tmp_path / f"{file.stem}.json"
        outcome = call(
            "evaluate", run / "global.safetensors", "--data", workplace.data, "--study",
            workplace.study, "--site", site, "--own", file, "--out", back,
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        assert "no output for a single image" in outcome.out
        difference = json.loads(back.read_text())["difference"]
        assert ("difference     accuracy" in outcome.out) == (difference is not None)
        files += ["--metrics", back]
    assert call("report", run, *files, "--study", workplace.study).code == 0
    assert "At the sites" in (run / "report.html").read_text("utf-8")
    assert "| north | 24 |" in (run / "model-card.md").read_text("utf-8")


def test_half_of_what_sending_back_needs(call: Call, workplace: Workplace) -> None:
    outcome = call("evaluate", workplace.run, "--data", workplace.data, "--site", "north")
    assert outcome.code == 1
    assert "--study" in outcome.err
    for option in ("--own", "--key"):
        outcome = call("evaluate", workplace.run, "--data", workplace.data, option, "x")
        assert outcome.code == 1
        assert "--study" in outcome.err
