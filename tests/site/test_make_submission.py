from __future__ import annotations

from pathlib import Path

import pytest
from torch.utils.data import DataLoader, TensorDataset

from oneround.data import Splits
from oneround.errors import OneRoundError
from oneround.site.make_submission import make_submission
from oneround.submission import read_submission
from tests.tiny import STUDY, Interrupted, Watching, equal, images


def test_images_in_one_file_out(tmp_path: Path) -> None:
    made = make_submission(STUDY, "north", Splits(images()), tmp_path / "north.oneround")
    submission = read_submission(made.file, STUDY)
    assert equal(submission.model, made.client.model)
    assert submission.manifest == made.manifest
    assert made.cost.flops > 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "north.oneround", "north.contact-sheet.png",
    }  # fmt: skip


def test_any_data_set_is_taken(tmp_path: Path) -> None:
    data = images()
    pairs = TensorDataset(data.pixels(), data.labels)
    one = make_submission(STUDY, "north", pairs, tmp_path / "one.oneround", device="cpu")
    two = make_submission(STUDY, "north", DataLoader(pairs, 5), tmp_path / "two.oneround")
    assert one.manifest.weights_sha256 == two.manifest.weights_sha256
    assert sum(one.manifest.class_counts or ()) == one.manifest.images


def test_the_same_call_continues_an_interrupted_training(tmp_path: Path) -> None:
    def stop(stage: str, done: int, *rest: object) -> None:
        raise Interrupted

    file, splits = tmp_path / "north.oneround", Splits(images())
    with pytest.raises(Interrupted):
        make_submission(STUDY, "north", splits, file, callbacks=[Watching(stop)])
    assert (tmp_path / "north.training").is_dir()
    resumed = make_submission(STUDY, "north", splits, file)
    whole = make_submission(STUDY, "north", splits, tmp_path / "whole.oneround")
    assert resumed.manifest.weights_sha256 == whole.manifest.weights_sha256
    assert not (tmp_path / "north.training").exists()


def test_another_file_is_never_replaced(tmp_path: Path) -> None:
    file = tmp_path / "letter.oneround"
    file.write_text("to a colleague")
    with pytest.raises(OneRoundError, match="submission"):
        make_submission(STUDY, "north", Splits(images()), file)
    assert file.read_text() == "to a colleague"
