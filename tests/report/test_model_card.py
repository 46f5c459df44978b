from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oneround import methods
from oneround.coordinator.aggregate import aggregate
from oneround.coordinator.history import Ledger
from oneround.coordinator.results import Results
from oneround.errors import OneRoundError
from oneround.evaluation import measure
from oneround.report import write_model_card
from oneround.runs.cost import Cost
from oneround.submission import Submission
from tests import tiny


def test_card_of_a_run(tmp_path: Path, submissions: list[Submission]) -> None:
    options = methods.get().resolve("quick", tiny.HEADFIT)
    aggregate(tiny.STUDY, submissions, out=tmp_path, options=options)
    text = write_model_card(tmp_path).read_text("utf-8")
    for part in (*tiny.CLASSES, "Not a medical device", Ledger.read(tmp_path).entries[0].model,
                 *(s.sha256 for s in submissions), "Not measured at the coordinator"):  # fmt: skip
        assert part in text


def test_card_says_nothing_that_its_numbers_contradict(
    tmp_path: Path, submissions: list[Submission]
) -> None:
    options = methods.get().resolve("quick", tiny.HEADFIT)
    aggregate(tiny.STUDY, submissions, out=tmp_path, options=options)
    untested = write_model_card(tmp_path).read_text("utf-8")
    assert "It has not been tested on any image" in untested
    assert "and from synthesized images" in untested
    results = Results.read(tmp_path)
    metrics = measure(torch.eye(3), torch.arange(3), tiny.CLASSES, resamples=10)
    models = results.models.model_copy(update={"global_model": metrics})
    cost = {name: cost for name, cost in results.cost.items() if name != "synthesis"}
    results.model_copy(update={"models": models, "cost": cost}).write(tmp_path)
    tested = write_model_card(tmp_path).read_text("utf-8")
    assert "On 3 test images" in tested
    assert "not been tested" not in tested
    assert "synthesized" not in tested.split("## History")[0]


@pytest.mark.parametrize(
    ("stage", "said"), [("centralized", "were pooled"), ("rounds", "in every round")]
)
def test_card_of_what_only_a_simulation_can_do(
    tmp_path: Path, submissions: list[Submission], stage: str, said: str
) -> None:
    options = methods.get("fedavg").resolve("quick")
    aggregate(tiny.STUDY, submissions, out=tmp_path, method="fedavg", options=options)
    assert "No image left a hospital" in write_model_card(tmp_path).read_text("utf-8")
    results = Results.read(tmp_path)
    results.model_copy(update={"cost": results.cost | {stage: Cost()}}).write(tmp_path)
    text = write_model_card(tmp_path).read_text("utf-8")
    assert said in text
    assert "No image left a hospital" not in text


def test_card_tells_who_came_and_who_left(tmp_path: Path, submissions: list[Submission]) -> None:
    options = methods.get().resolve("quick", tiny.HEADFIT)
    first, second = submissions
    runs = [tmp_path / name for name in ("a", "b", "c")]
    aggregate(tiny.STUDY, [first], out=runs[0], options=options)
    aggregate(tiny.STUDY, [first, second], out=runs[1], extends=runs[0])
    site = second.manifest.site
    aggregate(tiny.STUDY, [first], out=runs[2], extends=runs[1], without=[site])
    text = write_model_card(runs[2]).read_text("utf-8")
    assert f"{site} came late" in text
    assert f"{site} withdrew" in text
    assert "must not be used any more" in text


def test_a_note_is_text(tmp_path: Path, submissions: list[Submission]) -> None:
    """A part of it may be from a stranger."""
    options = methods.get().resolve("quick", tiny.HEADFIT)
    aggregate(tiny.STUDY, submissions, out=tmp_path, options=options)
    results = Results.read(tmp_path)
    note = "a file of <img src=x>\n\n## [Approved](http://x) | yes"
    results.model_copy(update={"notes": [note]}).write(tmp_path)
    text = write_model_card(tmp_path).read_text("utf-8")
    assert r"- a file of \<img src=x\> \#\# \[Approved\](http://x) \| yes" in text


def test_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(OneRoundError):
        write_model_card(tmp_path)
