from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oneround.cli import train
from oneround.study import Study
from oneround.submission import read_submission
from tests import tiny
from tests.cli.conftest import Call, Workplace


def test_hands_in_one_file(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    out = tmp_path / "new" / "west.oneround"
    content = call(
        "train", workplace.study, "--data", workplace.data, "--site", "west", "--out", out,
        "--json",
    ).json  # fmt: skip
    submission = read_submission(out, Study.read(workplace.study))
    assert content["manifest"] == submission.manifest.model_dump(mode="json")
    assert content["bytes"] == out.stat().st_size
    assert content["cost"]["flops"] > 0
    assert Image.open(content["contact_sheet"]).size[0] > 500
    assert {p.name for p in out.parent.iterdir()} == {"west.oneround", "west.contact-sheet.png"}


def test_interrupted_and_resumed_is_equal(
    call: Call, workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", workplace.study, "--data", workplace.data, "--site", "north"]

    def stop(self: object, stage: str, done: int, *rest: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "north.oneround"
    with monkeypatch.context() as patch:
        patch.setattr(train.ProgressBars, "on_progress", stop)
        assert call(*command, "--out", out).code == 130
    assert not out.exists()
    assert (tmp_path / "north.training" / "checkpoint.pt").exists()
    assert call(*command, "--out", out).code == 0
    study = Study.read(workplace.study)
    straight = read_submission(workplace.submissions[0], study)
    resumed = read_submission(out, study)
    assert resumed.manifest.weights_sha256 == straight.manifest.weights_sha256
    assert not (tmp_path / "north.training").exists()


def test_a_site_without_images_of_one_class(
    call: Call, workplace: Workplace, tmp_path: Path
) -> None:
    data = tiny.images(20)
    some = data.subset(torch.nonzero(data.labels > 0).flatten())
    folder = tiny.write_folder(tmp_path / "images", some)
    outcome = call(
        "train", workplace.study, "--data", folder, "--site", "a", "--out", tmp_path / "a.oneround"
    )
    assert outcome.code == 0
    assert "no image of    red (this is allowed)" in outcome.out


def test_too_few_steps_are_said(
    call: Call, workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", workplace.study, "--data", workplace.data, "--site", "north", "--out"]
    assert "few steps" in call(*command, tmp_path / "few.oneround").out
    monkeypatch.setattr(train, "FEW_STEPS", 1)
    assert "few steps" not in call(*command, tmp_path / "enough.oneround").out


def test_unreadable_images_are_named(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path / "images", tiny.images(20))
    (folder / "red" / "broken.png").write_bytes(b"no picture")
    command = ["train", workplace.study, "--data", folder, "--site", "a", "--out", tmp_path / "a"]
    outcome = call(*command)
    assert outcome.code == 0
    assert "broken.png" in outcome.err
    outcome = call(*command, "--max-skipped", 0)
    assert outcome.code == 1
    assert "broken.png" in outcome.err


def test_out_never_replaces_anything_but_a_submission(
    call: Call, workplace: Workplace, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.oneround").mkdir()
    study = workplace.study.read_bytes()
    table = tmp_path / "data.npz"
    np.savez(table, x=np.zeros(3))
    for out in (workplace.study, tmp_path / "folder", tmp_path / "folder.oneround", table):
        outcome = call(
            "train", workplace.study, "--data", workplace.data, "--site", "a", "--out", out
        )
        assert outcome.code == 1
        assert outcome.err.startswith(f"error in {out}\n")
        assert "something else than a submission" in outcome.err
        assert "Remedy" in outcome.err
    assert workplace.study.read_bytes() == study
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_that_was_there_stays(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    (tmp_path / "a.training").mkdir()
    (tmp_path / "a.training" / "notes.txt").write_text("mine")
    out = tmp_path / "a.oneround"
    outcome = call("train", workplace.study, "--data", workplace.data, "--site", "a", "--out", out)
    assert outcome.code == 0, outcome.err
    assert [path.name for path in (tmp_path / "a.training").iterdir()] == ["notes.txt"]


def test_out_in_a_file(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "a.oneround"
    outcome = call("train", workplace.study, "--data", workplace.data, "--site", "a", "--out", out)
    assert outcome.code == 1
    assert outcome.err.startswith("error in ")
    assert "Remedy" in outcome.err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--site", "../north"], "cannot be the name of a site"),
        (["--site", "a", "--architecture", "resnet18:width=3"], "does not allow"),
        pytest.param(
            ["--site", "a", "--device", "cuda"],
            "device 'cuda' cannot be used",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_refused_before_training(
    call: Call, workplace: Workplace, tmp_path: Path, options: list[str], reason: str
) -> None:
    out = tmp_path / "a.oneround"
    outcome = call("train", workplace.study, "--data", workplace.data, "--out", out, *options)
    assert outcome.code == 1
    assert reason in outcome.err
    assert "Remedy" in outcome.err
    assert not out.exists()


def test_withheld_class_counts_are_said_to_be(
    call: Call, workplace: Workplace, tmp_path: Path
) -> None:
    study, out = tmp_path / "secret.toml", tmp_path / "north.oneround"
    text = workplace.study.read_text("utf-8")
    assert "share_class_counts = true" in text
    study.write_text(text.replace("share_class_counts = true", "share_class_counts = false"))
    outcome = call("train", study, "--data", workplace.data, "--site", "north", "--out", out)
    assert outcome.code == 0, outcome.err
    assert "it withholds   class counts" in outcome.out
    assert "it reports" not in outcome.out
    assert read_submission(out).manifest.class_counts is None


def test_only_the_rows_of_the_site_are_trained_on(
    call: Call, workplace: Workplace, tmp_path: Path
) -> None:
    data = tiny.images(48, classes=("blue", "green", "red"))
    table = tiny.write_csv(tmp_path, data, ["train"] * 48, ["north", "south"] * 24)
    command = ("train", workplace.study, "--data", table, "--device", "cpu", "--json")
    made = call(*command, "--site", "north", "--out", tmp_path / "north.oneround")
    assert made.code == 0, made.err
    assert made.json["manifest"]["images"] + made.json["held_out"] == 24
    refused = call(*command, "--site", "east", "--out", tmp_path / "east.oneround")
    assert refused.code == 1
    assert "no image of 'east'" in refused.err


def test_a_cache_gives_the_same_submission(
    call: Call, workplace: Workplace, tmp_path: Path
) -> None:
    folder = tiny.write_folder(
        tmp_path / "images", tiny.images(30, classes=("blue", "green", "red"))
    )
    hashes = []
    for extra in ((), ("--cache", tmp_path / "cache"), ("--cache", tmp_path / "cache")):
        made = call(
            "train", workplace.study, "--data", folder, "--site", "north", "--json",
            "--out", tmp_path / "north.oneround", "--device", "cpu", "--threads", "1", *extra,
        )  # fmt: skip
        assert made.code == 0, made.err
        hashes.append(made.json["manifest"]["weights_sha256"])
    assert len(set(hashes)) == 1
