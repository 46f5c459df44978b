from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from oneround.data.images import read_image
from oneround.model_file import Model, load_model
from tests import tiny
from tests.cli.conftest import Call, Workplace


def pictures(workplace: Workplace) -> list[Path]:
    return sorted((workplace.data / "test").rglob("*.png"))[:3]


def test_probabilities_are_those_of_the_model(call: Call, workplace: Workplace) -> None:
    files = pictures(workplace)
    rows = call("predict", workplace.run, *files, "--json").json
    loaded = load_model(workplace.run)
    x = torch.stack(
        [loaded.task.image.normalize(read_image(file, loaded.task.image)) for file in files]
    )
    expected = loaded.network(x).softmax(1)
    for row, file, probabilities in zip(rows, files, expected, strict=True):
        assert row["image"] == str(file)
        assert list(row["probabilities"]) == list(loaded.task.classes)
        assert list(row["probabilities"].values()) == pytest.approx(
            probabilities.tolist(), abs=1e-4
        )
        assert row["predicted"] == loaded.task.classes[int(probabilities.argmax())]


def test_a_table_of_whole_folders(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    table = tmp_path / "predictions.csv"
    outcome = call("predict", workplace.run, workplace.data / "test" / "red", "--out", table)
    assert outcome.code == 0
    assert str(table) in outcome.out
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert list(rows[0]) == ["image", "predicted", "p_blue", "p_green", "p_red", "error"]
    for row in rows:
        probabilities = {name: float(row[f"p_{name}"]) for name in tiny.CLASSES}
        assert row["predicted"] == max(probabilities, key=probabilities.__getitem__)
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)


def test_classes_named_as_the_columns_are(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    classes = ("image", "predicted", 'p, or "q"')
    study = tiny.STUDY.model_copy(update={"classes": classes})
    Model(
        tiny.network(),
        study.task,
        (tiny.RESNET,),
        method="fedavg",
        study=study.name,
        study_hash=study.hash,
    ).save(tmp_path)
    (file, *_) = pictures(workplace)
    outcome = call("predict", tmp_path, file, "--out", tmp_path / "predictions.csv", "--json")
    with (tmp_path / "predictions.csv").open(newline="") as table:
        (row,) = csv.DictReader(table)
    assert list(row) == ["image", "predicted", "p_image", "p_predicted", 'p_p, or "q"', "error"]
    (content,) = outcome.json
    assert row["image"] == content["image"] == str(file)
    assert row["predicted"] == content["predicted"]
    assert [float(row[f"p_{c}"]) for c in classes] == list(content["probabilities"].values())
    assert "p_CLASS" in " ".join(call("predict", "--help").out.split())


def test_dicom(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 20, 30, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = np.arange(600, dtype=np.uint16).tobytes()
    dataset.save_as(tmp_path / "scan.dcm", enforce_file_format=True)
    (row,) = call("predict", workplace.run, tmp_path / "scan.dcm", "--json").json
    assert row["predicted"] in load_model(workplace.run).task.classes


def test_unreadable_files_are_named_and_the_rest_is_done(
    call: Call, workplace: Workplace, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    (file, *_) = pictures(workplace)
    outcome = call("predict", workplace.run, file, broken)
    assert outcome.code == 1
    assert str(broken) in outcome.err
    assert str(file) in outcome.out
    outcome = call("predict", workplace.run, broken)
    assert outcome.code == 1
    assert "no image could be read" in outcome.err


def test_folders(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    """Hidden files are passed over; a folder without a file is named."""
    outcome = call("predict", workplace.run, tmp_path)
    assert outcome.code == 1
    assert f"error in {tmp_path}\n  no image could be read." in outcome.err
    (file, *_) = pictures(workplace)
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "a.png").write_bytes(file.read_bytes())
    (row,) = call("predict", workplace.run, tmp_path, "--json").json
    assert row["image"] == str(tmp_path / "a.png")


def test_names_that_are_not_utf_8(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    (file, *_) = pictures(workplace)
    odd = tmp_path / os.fsdecode(b"\xff.png")
    try:
        odd.write_bytes(file.read_bytes())
    except OSError:
        pytest.skip("the file system refuses such names")
    assert call("predict", workplace.run, odd, "--out", tmp_path / "table.csv").code == 0
    assert os.fsencode(odd) in (tmp_path / "table.csv").read_bytes()


def test_every_unreadable_image_is_named(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    good = pictures(workplace)[0]
    bad = [tmp_path / f"{number}.png" for number in range(30)]
    for file in bad:
        file.write_text("x")
    table = tmp_path / "predictions.csv"
    outcome = call("predict", workplace.run, good, *bad, "--json", "--out", table)
    assert outcome.code == 1
    printed = json.loads(outcome.out)
    assert [row["image"] for row in printed] == [str(good), *map(str, bad)]
    assert all("cannot be read" in row["error"] for row in printed[1:])
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows if row["error"]] == [str(file) for file in bad]
    assert all(str(file) in outcome.err for file in bad)
