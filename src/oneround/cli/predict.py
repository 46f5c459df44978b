"""``oneround predict``: class probabilities of image files."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from oneround.cli.console import (
    AsJson,
    DeviceName,
    ProgressBars,
    Threads,
    err,
    print_json,
    say,
)
from oneround.data import ImageSet
from oneround.data.images import read_images
from oneround.data.listing import files_below
from oneround.errors import OneRoundError
from oneround.evaluation import predict as probabilities_of
from oneround.files import require_folder, write_atomic
from oneround.model_file import Model, load_model
from oneround.runs.device import fabric_for

if TYPE_CHECKING:
    from lightning_fabric import Fabric

AT_ONCE = 256
"""Files that are in memory together."""


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


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be read.

    Attributes:
        image: path of the file.
        error: why it cannot be read.
    """

    image: str
    error: str


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
            "probability p_CLASS; then error, for images that cannot be read.",
            show_default=False,
        ),
    ] = None,
    device: DeviceName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Predict class probabilities of image files. Research only: not a medical device.

    Images that cannot be read are named, also in the table and in JSON, and the exit code is
    then 1.

    Example: `oneround predict run/global.safetensors scan1.dcm scan2.png --out predictions.csv`
    """
    if table:
        require_folder(table)
    loaded = load_model(model_file)
    fabric = fabric_for(device, threads)
    predictions, unreadable = [], []
    with ProgressBars() as bars:
        paths = _expand(files)
        for start in range(0, len(paths), AT_ONCE):
            part = paths[start : start + AT_ONCE]
            found, failed = _predict(loaded, part, fabric)
            predictions += found
            unreadable += failed
            if len(paths) > AT_ONCE:
                bars.on_progress("prediction", start + len(part), len(paths), "")
    if not predictions:
        raise OneRoundError(
            "no image could be read." + "".join(f" {u.image}: {u.error}" for u in unreadable[:3]),
            file=files[0] if len(files) == 1 else None,
            remedy="Give image files, or folders that contain some.",
        )
    if table:
        write_atomic(table, _csv(predictions, unreadable, loaded.task.classes))
    if as_json:
        print_json([*map(asdict, predictions), *map(asdict, unreadable)])
    elif table:
        say(f"{len(predictions)} prediction(s) written to {table}")
    else:
        for p in predictions:
            say(f"{p.image}: {p.predicted} ({p.probabilities[p.predicted]})")
    if unreadable:
        say(f"{len(unreadable)} image(s) could not be read:", "yellow", err)
        for row in unreadable:
            say(f"  {row.image}: {row.error}", console=err)
        raise typer.Exit(1)


def _predict(
    loaded: Model, paths: list[Path], fabric: Fabric
) -> tuple[list[Prediction], list[Unreadable]]:
    """Predictions for the images in these files, each of them a number of frames."""
    image, classes = loaded.task.image, loaded.task.classes
    names, pixels, unreadable = [], [], []
    for path in paths:
        try:
            frames = read_images(path, image)
        except OneRoundError as error:
            unreadable.append(Unreadable(str(path), error.reason.rstrip(".")))
            continue
        several = len(frames) > 1
        names += [f"{path} frame {i + 1}" if several else str(path) for i in range(len(frames))]
        pixels.append(frames)
    if not names:
        return [], unreadable
    data = ImageSet(torch.cat(pixels), torch.zeros(len(names), dtype=torch.int64), classes)
    rows = probabilities_of(loaded.network, data, image, fabric=fabric)
    if not rows.isfinite().all():
        worst = names[int((~rows.isfinite()).any(1).nonzero()[0])]
        raise OneRoundError(
            f"the output for {worst} is not a finite number.",
            remedy="Its weights are damaged or its training diverged: use another model.",
        )
    predictions = [
        Prediction(
            name,
            classes[int(row.argmax())],
            {c: round(float(p), 6) for c, p in zip(classes, row, strict=True)},
        )
        for name, row in zip(names, rows, strict=True)
    ]
    return predictions, unreadable


def _csv(
    predictions: list[Prediction], unreadable: list[Unreadable], classes: tuple[str, ...]
) -> bytes:
    """A line for each image; the prefix keeps a class named "image" apart from the column."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image", "predicted", *(f"p_{name}" for name in classes), "error"])
    for p in predictions:
        writer.writerow([p.image, p.predicted, *(p.probabilities[c] for c in classes), ""])
    for u in unreadable:
        writer.writerow([u.image, "", *("" for _ in classes), u.error])
    return text.getvalue().encode(errors="surrogateescape")


def _expand(paths: list[Path]) -> list[Path]:
    """The files as given, and all files but hidden ones below folders."""
    return [file for path in paths for file in (files_below(path) if path.is_dir() else [path])]
