from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from oneround.site.contact_sheet import write_contact_sheet
from tests.tiny import IMAGE, STUDY, images


def test_a_picture_with_a_row_for_each_class(tmp_path: Path) -> None:
    write_contact_sheet(tmp_path / "sheet.png", STUDY, images())
    picture = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    rows = np.array_split(picture, 3)
    for row, channel in zip(rows, range(3), strict=True):  # red, green, blue images
        colored = row[np.ptp(row, axis=2) > 40]
        assert len(colored) > 100
        assert (np.bincount(colored.argmax(1), minlength=3)[channel]) > 0.8 * len(colored)


def test_few_images_gray_images_and_classes_without(tmp_path: Path) -> None:
    gray = IMAGE.model_copy(update={"channels": 1})
    study = STUDY.model_copy(update={"image": gray})
    data = images(image=gray)
    write_contact_sheet(tmp_path / "sheet.png", study, data.subset(torch.tensor([0, 3, 1])))
    assert Image.open(tmp_path / "sheet.png").size[0] > 500


def test_is_deterministic(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        write_contact_sheet(tmp_path / name, STUDY, images())
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_names_with_signs_of_formulas_or_letters_without_a_font(tmp_path: Path) -> None:
    study = STUDY.model_copy(update={"classes": ("$x^$", "日本", "a_b")})
    data = images(classes=study.classes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_contact_sheet(tmp_path / "sheet.png", study, data)
    assert Image.open(tmp_path / "sheet.png").size[0] > 500
