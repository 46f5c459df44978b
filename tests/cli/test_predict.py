from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from cli.conftest import Call, Workplace
from oneround.data.images import read_image
from oneround.model_file import load_model


def pictures(workplace: Workplace) -> list[Path]:
    return sorted((workplace.data / "test").rglob("*.png"))[:3]


def test_probabilities_are_those_of_the_model(call: Call, workplace: Workplace) -> None:
    files = pictures(workplace)
    rows = call("predict", workplace.run, *files, "--json").json
    loaded = load_model(workplace.run)
    x = torch.stack([loaded.image.normalize(read_image(file, loaded.image)) for file in files])
    expected = loaded.model(x).softmax(1)
    for row, file, probabilities in zip(rows, files, expected, strict=True):
        assert row["image"] == str(file)
        assert [row[name] for name in loaded.classes] == pytest.approx(
            probabilities.tolist(), abs=1e-4
        )
        assert row["predicted"] == loaded.classes[int(probabilities.argmax())]


def test_a_table_of_whole_folders(call: Call, workplace: Workplace, tmp_path: Path) -> None:
    table = tmp_path / "predictions.csv"
    outcome = call("predict", workplace.run, workplace.data / "test" / "red", "--out", table)
    assert outcome.code == 0
    assert str(table) in outcome.out
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert list(rows[0]) == ["image", "predicted", *load_model(workplace.run).classes]


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
    assert row["predicted"] in load_model(workplace.run).classes


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
