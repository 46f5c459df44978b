"""``oneround predict``: class probabilities of image files."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from oneround.cli.console import (
    AsJson,
    DeviceName,
    Threads,
    print_json,
    say,
    warn_skipped,
)
from oneround.data import ImageSet
from oneround.data.images import read_image
from oneround.data.listing import files_below
from oneround.errors import OneRoundError
from oneround.evaluation import predict as probabilities_of
from oneround.files import require_folder, write_atomic
from oneround.model_file import load_model
from oneround.runs.device import fabric_for


@dataclass(frozen=True)
class Prediction:
    """The prediction of a model for one image.

    Attributes:
        image: path of the file.
        predicted: class with the highest probability.
        probabilities: probability of every class, in [0, 1].
    """

    image: str
    predicted: str
    probabilities: dict[str, float]


def predict(
    model_file: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="Model: global.safetensors, a submission or a RUN folder.",
            show_default=False,
        ),
    ],
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE…",
            help="Images: PNG, JPEG, TIFF, BMP or DICOM files, or folders of them.",
        ),
    ],
    table: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="CSV file to write, with the columns image, predicted and, for each class, its "
            "probability p_CLASS.",
            show_default=False,
        ),
    ] = None,
    device: DeviceName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Predict class probabilities of image files. Research only: not a medical device.

    Images that cannot be read are named, and the exit code is then 1.

    Example: `oneround predict run/global.safetensors scan1.dcm scan2.png --out predictions.csv`
    """
    if table:
        require_folder(table)
    loaded = load_model(model_file)
    image, classes = loaded.task.image, loaded.task.classes
    images, paths, skipped = [], [], []
    for path in _expand(files):
        try:
            images.append(read_image(path, image))
            paths.append(path)
        except OneRoundError as error:
            skipped.append(str(error))
    warn_skipped(skipped)
    if not images:
        raise OneRoundError(
            "no image could be read.",
            file=files[0] if len(files) == 1 else None,
            remedy="Give image files, or folders that contain some.",
        )
    data = ImageSet(torch.stack(images), torch.zeros(len(images), dtype=torch.int64), classes)
    fabric = fabric_for(device, threads)
    probabilities = probabilities_of(loaded.network, data, image, fabric=fabric)
    predictions = [
        Prediction(
            str(path),
            classes[int(row.argmax())],
            {name: round(float(p), 6) for name, p in zip(classes, row, strict=True)},
        )
        for path, row in zip(paths, probabilities, strict=True)
    ]
    if table:
        write_atomic(table, _csv(predictions, classes))
    if as_json:
        print_json([asdict(prediction) for prediction in predictions])
    elif table:
        say(f"{len(predictions)} prediction(s) written to {table}")
    else:
        for p in predictions:
            say(f"{p.image}: {p.predicted} ({p.probabilities[p.predicted]})")
    if skipped:
        raise typer.Exit(1)


def _csv(predictions: list[Prediction], classes: tuple[str, ...]) -> bytes:
    """A line for each image; the prefix keeps a class named "image" apart from the column."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image", "predicted", *(f"p_{name}" for name in classes)])
    for p in predictions:
        writer.writerow([p.image, p.predicted, *(p.probabilities[name] for name in classes)])
    return text.getvalue().encode(errors="surrogateescape")


def _expand(paths: list[Path]) -> list[Path]:
    """The files as given, and all files but hidden ones below folders."""
    return [file for path in paths for file in (files_below(path) if path.is_dir() else [path])]
