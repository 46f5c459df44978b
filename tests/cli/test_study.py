from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oneround import models
from oneround.study import ImageSpec, Study, preset
from tests import tiny
from tests.cli.conftest import Call, Workplace


def test_from_a_data_set(call: Call, workplace: Workplace) -> None:
    content = call("study", "check", workplace.study, "--json").json
    assert content["classes"] == sorted(tiny.CLASSES)
    assert content["image"]["height"] == content["image"]["width"] == 16
    assert content["training"]["epochs"] == 2
    assert content["architectures"] == [tiny.RESNET.model_dump()]
    assert content["hash"] == Study.read(workplace.study).hash


def test_from_answers(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    content = call(
        "study", "init", path, "--classes", "healthy, sick", "--size", 32, "--channels", 1,
        "--site", "north", "--site", "south", "--no-share-class-counts", "--seed", 4,
        "--name", "lungs", "--set", "training.class_weighted=true", "--json",
    )  # fmt: skip
    study = Study.read(path)
    assert content.json["hash"] == study.hash
    assert study.classes == ("healthy", "sick")
    assert study.sites == ("north", "south")
    assert study.image.shape == (1, 32, 32)
    assert (study.name, study.seed, study.share_class_counts) == ("lungs", 4, False)
    assert study.training.class_weighted
    assert str(path) in call("study", "check", path).out


def test_a_folder_with_one_class(call: Call, tmp_path: Path) -> None:
    data = tiny.write_folder(tmp_path / "images", tiny.images(2, classes=("sick",)))
    command = ["study", "init", tmp_path / "study.toml", "--data", data]
    outcome = call(*command)
    assert outcome.code == 1
    assert f"error in {data}\n  there is only one class, sick." in outcome.err
    assert "--classes" in outcome.err
    assert call(*command, "--classes", "healthy,sick").code == 0


def test_a_class_whose_name_holds_a_comma(call: Call, tmp_path: Path) -> None:
    command = [
        "study",
        "init",
        tmp_path / "study.toml",
        "--classes",
        'benign, "malignant, in situ"',
    ]
    assert call(*command, "--json").json["classes"] == ["benign", "malignant, in situ"]


def test_an_existing_study_is_kept(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    assert call("study", "init", path, "--classes", "a,b").code == 0
    before = path.read_bytes()
    outcome = call("study", "init", path, "--classes", "a,b,c")
    assert outcome.code == 1
    assert "--force" in outcome.err
    assert path.read_bytes() == before
    assert call("study", "init", path, "--classes", "a,b,c", "--force").code == 0
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "neither --data nor --classes"),
        (["--classes", "a"], "classes"),
        (["--classes", "a,b", "--channels", "2"], "channels"),
        (["--classes", "a,b", "--architecture", "resnet"], "unknown architecture"),
        (["--classes", "a,b", "--architecture", "resnet18:breadth=3"], "breadth"),
        (["--classes", "a,b", "--preset", "fast"], "no preset"),
        (["--classes", "a,b", "--size", "8", "--architecture", "densenet"], "cannot take images"),
        (["--classes", "a,b", "--set", "training.epoch=3"], r"training.epoch"),
    ],
)
def test_answers_that_make_no_study(
    call: Call, tmp_path: Path, options: list[str], reason: str
) -> None:
    path = tmp_path / "study.toml"
    outcome = call("study", "init", path, *options)
    assert outcome.code == 1
    assert reason in outcome.err
    assert "Remedy" in outcome.err
    assert not path.exists()


def test_keys_in_a_study_of_the_version_before(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "blood.toml"
    assert call("study", "init", path, "--classes", "a,b", "--at-least", 2).code == 0
    text = path.read_text("utf-8").replace("[submission]", "[hand_in] # how files come in")
    text = text.replace("[submission.keys]", "[hand_in.keys]")
    assert "[hand_in]" in text
    path.write_text(text, encoding="utf-8")
    assert call("keys", "new", tmp_path / "north").code == 0
    outcome = call("study", "keys", path, "--key", f"north={tmp_path / 'north.pub'}")
    assert outcome.code == 0, outcome.err
    changed = path.read_text("utf-8")
    assert "hand_in" not in changed
    assert "[submission] # how files come in" in changed
    study = Study.read(path)
    assert set(study.submission.keys) == {"north"}
    assert study.submission.at_least == 2


@pytest.mark.parametrize("side", [8, 9, 63, 64, 1024])
def test_the_presets_fit_every_image_so_they_are_not_built_to_check_a_study(side: int) -> None:
    image = ImageSpec(height=side, width=8, channels=1)
    for name in ("quick", "paper"):
        with torch.device("meta"):
            network = models.build(preset(name, image)[0], image, 2)
            models.require_fit(network, image, 2)
