from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from oneround.models import registry
from oneround.study import ArchitectureSpec, ImageSpec, Study
from oneround.submission import (
    Submission,
    check_submission,
    check_together,
    read_submission,
)

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
