from __future__ import annotations

import errno
import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from oneround.errors import OneRoundError
from oneround.models import registry
from oneround.study import ArchitectureSpec, Study
from oneround.submission import (
    Privacy,
    TrainingSummary,
    check_submission,
    read_submission,
    read_submissions,
)

from .conftest import CREATED, client_model

Submit = Callable[..., Path]


def test_model_comes_back_bit_for_bit(submit: Submit, study: Study, model: nn.Module) -> None:
    read = read_submission(submit(), study).model
    expected = model.state_dict()
    assert list(read.state_dict()) == list(expected)
    for name, tensor in read.state_dict().items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name
    assert int(read.state_dict()["bn1.num_batches_tracked"]) == 3
    images = torch.randn(2, *study.image.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(read(images), model(images))
    assert not read.training
    assert not any(parameter.requires_grad for parameter in read.parameters())


def test_manifest_says_what_was_given(submit: Submit, study: Study) -> None:
    path = submit(privacy=Privacy(epsilon=3.0, delta=1e-5))
    submission = read_submission(path, study)
    manifest = submission.manifest
    assert (manifest.study, manifest.study_hash, manifest.site) == ("cells", study.hash, "north")
    assert manifest.architecture == study.architectures[0]
    assert (manifest.classes, manifest.image) == (study.classes, study.image)
    assert (manifest.images, manifest.class_counts) == (120, (50, 40, 30))
    assert manifest.training.validation == {"accuracy": 0.75}
    assert manifest.privacy == Privacy(epsilon=3.0, delta=1e-5)
    assert manifest.created == CREATED
    assert manifest.versions["torch"] == torch.__version__
    content = path.read_bytes()
    assert (submission.sha256, submission.size, submission.path) == (
        hashlib.sha256(content).hexdigest(),
        len(content),
        path,
    )


def test_good_submission_has_no_problem(submit: Submit, study: Study) -> None:
    assert check_submission(submit(), study) == []
    assert check_submission(submit()) == []


def test_equal_content_gives_an_equal_file(submit: Submit) -> None:
    assert submit("first.oneround").read_bytes() == submit("second.oneround").read_bytes()


def test_any_zip_tool_lists_two_stored_members(submit: Submit) -> None:
    with zipfile.ZipFile(submit()) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["manifest.json", "model.safetensors"]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_reading_leaves_the_random_numbers_alone(submit: Submit, study: Study) -> None:
    path = submit()
    before = torch.get_rng_state()
    read_submission(path, study)
    assert torch.equal(torch.get_rng_state(), before)


def test_class_counts_stay_at_the_site_unless_the_study_shares_them(
    submit: Submit, study: Study
) -> None:
    private = study.model_copy(update={"share_class_counts": False})
    path = submit(study=private)
    assert read_submission(path, private).manifest.class_counts is None
    assert b"[50," not in path.read_bytes()


def test_tensor_of_counts_is_taken(submit: Submit) -> None:
    counts = torch.tensor([50, 40, 30])
    assert read_submission(submit(class_counts=counts)).manifest.class_counts == (50, 40, 30)


def test_metrics_that_cannot_be_computed_are_left_out() -> None:
    summary = TrainingSummary(
        epochs=1, best_epoch=1, loss=0.5, validation={"auroc": float("nan"), "accuracy": 1.0}
    )
    assert summary.validation == {"accuracy": 1.0}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_full_disk_leaves_the_older_file(
    submit: Submit, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = submit()
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OneRoundError, match=os.strerror(number)) as caught:
        submit(images=121, class_counts=[51, 40, 30])
    assert caught.value.file == str(path)
    assert caught.value.remedy
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"site": "east"}, "unknown-site"),
        ({"architecture": ArchitectureSpec(name="resnet34")}, "architecture-not-allowed"),
        ({"site": "../north"}, "site: "),
        ({"images": 0}, "images: "),
        ({"class_counts": [1, 2]}, "class_counts needs one number"),
        ({"created": "yesterday"}, "created: "),
    ],
)
def test_nothing_is_written_that_a_reader_would_refuse(
    submit: Submit, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(OneRoundError, match=reason) as caught:
        submit(**changes)
    assert caught.value.file == str(tmp_path / "north.oneround")
    assert list(tmp_path.iterdir()) == []


def test_diverged_training_is_noticed_at_the_site(submit: Submit, study: Study) -> None:
    diverged = client_model(study)
    with torch.no_grad():
        next(diverged.parameters())[0] = float("nan")
    with pytest.raises(OneRoundError, match="weights-not-finite"):
        submit(model=diverged)


def test_own_network(submit: Submit, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(channels: int, classes: int, *, hidden: int) -> nn.Module:
        layers = nn.Conv2d(channels, hidden, 3), nn.BatchNorm2d(hidden), nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(hidden, classes))

    monkeypatch.setitem(registry._BUILDERS, "mine", build)
    own = ArchitectureSpec(name="mine", arguments={"hidden": 4})
    wide = study.model_copy(update={"architectures": (*study.architectures, own)})
    model = build(3, 3, hidden=4)
    path = submit(model=model, architecture=own, study=wide)
    images = torch.randn(2, *study.image.shape)
    assert torch.equal(read_submission(path, wide).model(images), model.eval()(images))

    monkeypatch.delitem(registry._BUILDERS, "mine")
    [problem] = check_submission(path, wide)
    assert problem.code == "unknown-architecture"
    assert "register" in problem.remedy


def test_network_of_another_size_than_named(submit: Submit, study: Study) -> None:
    wide = ArchitectureSpec(name="resnet18", arguments={"width": 4})
    both = study.model_copy(update={"architectures": (*study.architectures, wide)})
    with pytest.raises(OneRoundError, match="tensor-shape"):
        submit(study=both, architecture=wide)


def test_all_submissions_sorted_by_site(submit: Submit, study: Study) -> None:
    sites = ("west", "north", "south")
    paths = [
        submit(f"{i}.oneround", site=site, model=client_model(study, i))
        for i, site in enumerate(sites)
    ]
    read = read_submissions(paths, study)
    assert [submission.manifest.site for submission in read] == ["north", "south", "west"]
    assert [submission.path.name for submission in read] == [
        "1.oneround",
        "2.oneround",
        "0.oneround",
    ]


def test_all_bad_files_in_one_error(submit: Submit, study: Study, tmp_path: Path) -> None:
    good, again = submit(), submit("again.oneround")
    empty = tmp_path / "empty.oneround"
    empty.touch()
    missing = tmp_path / "missing.oneround"
    with pytest.raises(OneRoundError) as caught:
        read_submissions([good, empty, missing, again], study)
    for part in (str(empty), "not-a-submission", str(missing), "no such file", "site-twice"):
        assert part in str(caught.value)


def test_no_submission_at_all(study: Study) -> None:
    with pytest.raises(OneRoundError, match="No submission"):
        read_submissions([], study)
