"""``oneround predict``: class probabilities of image files."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated

import torch
import typer

from oneround.cli.console import AsJson, print_json, say, warn_skipped
from oneround.data import ImageSet
from oneround.data.images import read_image
from oneround.errors import OneRoundError
from oneround.evaluation import predict as probabilities_of
from oneround.files import write_atomic
from oneround.model_file import load_model


def predict(
    model_file: Annotated[Path, typer.Argument(metavar="MODEL", show_default=False)],
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE…", help="PNG, JPEG, TIFF, BMP or DICOM files, or folders of them."
        ),
    ],
    table: Annotated[
        Path | None, typer.Option("--out", help="CSV file to write.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Class probabilities for image files. Research only: not a medical device.

    Images that cannot be read are named, and the exit code is then 1.

    Example: `oneround predict run/global.safetensors scan1.dcm scan2.png --out predictions.csv`
    """
    loaded = load_model(model_file)
    images, paths, skipped = [], [], []
    for path in _expand(files):
        try:
            images.append(read_image(path, loaded.image))
            paths.append(path)
        except OneRoundError as error:
            skipped.append(str(error))
    warn_skipped(skipped)
    if not images:
        raise OneRoundError("no image could be read.", remedy="Check the paths and formats above.")
    data = ImageSet(
        torch.stack(images), torch.zeros(len(images), dtype=torch.int64), loaded.classes
    )
    rows = [
        {
            "image": str(path),
            "predicted": loaded.classes[int(row.argmax())],
            **{name: round(float(p), 6) for name, p in zip(loaded.classes, row, strict=True)},
        }
        for path, row in zip(paths, probabilities_of(loaded.model, data, loaded.image), strict=True)
    ]
    if table:
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(table, text.getvalue().encode())
    if as_json:
        print_json(rows)
    elif table:
        say(f"{len(rows)} prediction(s) written to {table}")
    else:
        for row in rows:
            say(f"{row['image']}: {row['predicted']} ({row[str(row['predicted'])]})")
    if skipped:
        raise typer.Exit(1)


def _expand(paths: list[Path]) -> list[Path]:
    """Files as given, and all files below folders."""
    found: list[Path] = []
    for path in paths:
        found += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return found
