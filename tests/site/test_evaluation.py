from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from oneround.coordinator.history import Ledger
from oneround.errors import OneRoundError
from oneround.evaluation import evaluate
from oneround.model_file import load_model
from tests import tiny
from tests.evaluations import STUDY, at_site


def test_numbers_are_those_of_evaluate(finished_run: Path, submission_files: list[Path]) -> None:
    data = tiny.images(60, seed=5)
    found = at_site(finished_run, own=submission_files[0])
    expected = evaluate(load_model(finished_run).network, data, STUDY.image)
    own = evaluate(load_model(submission_files[0]).network, data, STUDY.image)
    assert found.own is not None
    for told, metrics in ((found.global_model, expected), (found.own, own)):
        assert told.accuracy == metrics.accuracy
        assert told.intervals == metrics.intervals
    assert found.images == 60
    assert found.class_counts == dict.fromkeys(tiny.CLASSES, 20)
    assert found.model == Ledger.read(finished_run).entries[-1].model


def test_client_model_of_another_site(finished_run: Path, submission_files: list[Path]) -> None:
    with pytest.raises(OneRoundError, match="the client model of site-1"):
        at_site(finished_run, own=submission_files[1])


def test_small_cells_are_not_told(finished_run: Path) -> None:
    found = at_site(finished_run)
    truth = evaluate(
        load_model(finished_run).network, tiny.images(60, seed=5), STUDY.image
    ).confusion
    for told, counts in zip(found.global_model.confusion, truth, strict=True):
        assert told == [None if 0 < n < 5 else n for n in counts]
    assert '"roc"' not in json.dumps(found.model_dump(mode="json"))


def test_class_with_few_images_is_left_out(finished_run: Path) -> None:
    data = tiny.images(60, seed=5)
    few = data.subset(torch.cat([(data.labels > 0).nonzero().flatten(), torch.tensor([0, 3])]))
    found = at_site(finished_run, data=few)
    assert found.left_out == (tiny.CLASSES[0],)
    assert found.images == 40
    assert tiny.CLASSES[0] not in {*found.class_counts, *found.global_model.recall}
    none = data.subset((data.labels > 0).nonzero().flatten())
    assert at_site(finished_run, data=none).left_out == ()
    with pytest.raises(OneRoundError, match="no class has 5 images"):
        at_site(finished_run, data=data.subset(torch.arange(6)))
