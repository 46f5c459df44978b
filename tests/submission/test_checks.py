from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from oneround.errors import OneRoundError
from oneround.models import registry
from oneround.study import ArchitectureSpec, ImageSpec, Study
from oneround.submission import (
    Privacy,
    Submission,
    check_submission,
    check_together,
    read_submission,
)
from oneround.submission.container import pack

from .conftest import client_model

Submit = Callable[..., Path]


def changed(study: Study, **changes: Any) -> Study:
    return Study.model_validate(study.model_dump() | changes)


def codes(path: Path, study: Study | None = None) -> list[str]:
    return [problem.code for problem in check_submission(path, study)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": 1}, ["other-study"]),
        ({"classes": ("b", "a", "c")}, ["other-study", "classes-differ"]),
        ({"sites": ("south",)}, ["other-study", "unknown-site"]),
        ({"image": ImageSpec(height=16, width=16, mean=(0.4,))}, ["other-study", "image-differs"]),
        (
            {"architectures": (ArchitectureSpec(name="densenet"),)},
            ["other-study", "architecture-not-allowed"],
        ),
    ],
)
def test_submission_of_another_study(
    submit: Submit, study: Study, changes: dict[str, Any], expected: list[str]
) -> None:
    path = submit()
    problems = check_submission(path, changed(study, **changes))
    assert [problem.code for problem in problems] == expected
    assert all(p.fatal and p.what and p.why and p.remedy for p in problems)


def test_order_of_classes_is_told_from_other_classes(submit: Submit, study: Study) -> None:
    path = submit()
    for classes, part in ((("c", "a", "b"), "another order"), (("a", "b", "x"), "'x'")):
        problems = check_submission(path, changed(study, classes=classes))
        assert part in problems[-1].what


def test_network_that_is_not_allowed_is_never_built(
    submit: Submit, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = submit()

    def build(*_: Any, **__: Any) -> None:
        raise AssertionError("built")

    monkeypatch.setitem(registry._BUILDERS, "resnet18", build)
    other = changed(study, architectures=(ArchitectureSpec(name="densenet"),))
    assert codes(path, other) == ["other-study", "architecture-not-allowed"]
    assert codes(path, study) == ["architecture-arguments"]  # the builder's error is a problem


def test_empty_class_and_few_images_are_allowed_and_said(submit: Submit, study: Study) -> None:
    path = submit(images=1, class_counts=[0, 1, 0])
    problems = check_submission(path, study)
    assert [(p.code, p.fatal) for p in problems] == [("empty-class", False), ("few-images", False)]
    assert "'a', 'c'" in problems[0].what
    assert read_submission(path, study).manifest.images == 1


def together(submit: Submit, *submissions: dict[str, Any]) -> list[str]:
    read: list[Submission] = [
        read_submission(submit(f"{i}.oneround", **changes)) for i, changes in enumerate(submissions)
    ]
    return [problem.code for problem in check_together(read)]


def test_submissions_that_fit_together(submit: Submit, study: Study) -> None:
    other = client_model(study, 1)
    assert together(submit, {}, {"site": "south", "model": other}) == []
    assert check_together([]) == []


def test_twice_from_one_site(submit: Submit, study: Study, model: nn.Module) -> None:
    assert together(submit, {}, {"model": client_model(study, 1)}) == ["site-twice"]
    assert together(submit, {}, {}) == ["site-twice"]


def test_same_weights_under_two_names(submit: Submit) -> None:
    copied = {"site": "south", "images": 99, "class_counts": [50, 40, 9]}
    assert together(submit, {}, copied) == ["same-weights"]


def test_different_studies(submit: Submit, study: Study) -> None:
    south = {"site": "south", "model": client_model(study, 1)}
    assert together(submit, {}, south | {"study": changed(study, seed=5)}) == ["different-studies"]
    reordered = changed(study, classes=("c", "b", "a"))
    assert together(submit, {}, south | {"study": reordered}) == [
        "different-studies",
        "classes-differ",
    ]


def test_problems_name_the_files(submit: Submit, study: Study) -> None:
    paths = [submit("one.oneround"), submit("two.oneround")]
    [problem] = check_together([read_submission(path) for path in paths])
    assert all(str(path) in problem.what for path in paths)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("images", True),
        ("images", "120"),
        ("images", 120.0),
        ("images", 1),
        ("skipped", -1),
        ("skipped", True),
        ("class_counts", [10**9] * 3),
        ("class_counts", [50, 40, 30.0]),
        ("class_counts", [True, 89, 30]),
        ("format", True),
        ("format", 1.0),
        ("created", "2025-02-30T12:00:00Z"),
        ("image.height", "16"),
        ("image.channels", True),
        ("training.epochs", "5"),
        ("training.loss", -1e-300),
        ("training.loss", 1e5),
        ("training.loss", "0.25"),
        ("training.loss", True),
        ("training.validation", {"accuracy": 1.01}),
        ("training.validation", {"AUROC": -5}),
        ("training.validation", {"kappa": 1e300}),
        ("training.validation", {"accuracy": True}),
    ],
)
def test_impossible_values(
    submit: Submit, study: Study, tmp_path: Path, key: str, value: object
) -> None:
    with zipfile.ZipFile(submit()) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    content = json.loads(members["manifest.json"])
    *tables, last = key.split(".")
    table = content[tables[0]] if tables else content
    table[last] = value
    path = tmp_path / "changed.oneround"
    path.write_bytes(pack(members | {"manifest.json": json.dumps(content).encode()}))
    assert codes(path, study) == ["manifest-invalid"]


def test_noised_counts_have_a_bound(submit: Submit, study: Study) -> None:
    privacy = Privacy(epsilon=1.0, delta=1e-5)
    path = submit(class_counts=[55, 30, 31], privacy=privacy)
    assert codes(path, study) == []
    with pytest.raises(OneRoundError, match="class_counts sum to"):
        submit(class_counts=[55, 30, 10**6], privacy=privacy)


def test_skipped_images(submit: Submit, study: Study) -> None:
    assert b"skipped" not in submit().read_bytes()  # so that version 0.1 reads it
    path = submit(skipped=7)
    assert read_submission(path).manifest.skipped == 7
    [problem] = check_submission(path, study)
    assert (problem.code, problem.fatal) == ("images-skipped", False)
    assert "could not read 7 image(s), and trained on 120" in problem.what


def test_most_images_of_the_study(submit: Submit, study: Study) -> None:
    path = submit()
    for most, expected in ((None, []), (120, []), (119, ["too-many-images"])):
        bounded = changed(study, submission={"most_images": most})
        assert bounded.hash == study.hash
        assert codes(path, bounded) == expected


def test_other_type_of_an_argument_is_another_architecture(submit: Submit, study: Study) -> None:
    path = submit()
    other = ArchitectureSpec(name="resnet18", arguments={"width": 2.0})
    assert "architecture-not-allowed" in codes(path, changed(study, architectures=(other,)))
