"""``oneround evaluate``: how good a model is on local images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from oneround import evaluation
from oneround.cli.console import (
    AsJson,
    DataPath,
    Device,
    Download,
    MaxSkipped,
    Threads,
    fabric_for,
    out,
    plain_table,
    print_json,
    say,
    warn_skipped,
)
from oneround.data import ImageSet, Splits, read_splits
from oneround.errors import OneRoundError
from oneround.evaluation import Metrics
from oneround.files import require_folder, write_json
from oneround.model_file import load_model
from oneround.report import units

Split = Literal["auto", "train", "val", "test"]
LABELS = {
    "accuracy": "accuracy",
    "balanced accuracy": "balanced_accuracy",
    "AUROC": "auroc",
    "calibration error": "ece",
}


def evaluate(
    model_file: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="global.safetensors, a submission, or a RUN folder.",
            show_default=False,
        ),
    ],
    data: DataPath,
    file: Annotated[Path | None, typer.Option("--out", help="Write the metrics as JSON.")] = None,
    split: Annotated[
        Split, typer.Option(help="Which images; auto: test, or else val, or else all.")
    ] = "auto",
    max_skipped: MaxSkipped = 0.05,
    download: Download = False,
    device: Device = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Metrics of a model on local images, with 95 % confidence intervals; only numbers leave.

    Example: `oneround evaluate run/global.safetensors --data images/ --out metrics.json`
    """
    if file:
        require_folder(file)
    loaded = load_model(model_file)
    splits = read_splits(
        data, image=loaded.image, classes=loaded.classes, max_skipped=max_skipped, download=download
    )
    warn_skipped(splits.skipped)
    name, images = _choose(splits, split, data)
    metrics = evaluation.evaluate(
        loaded.model, images, loaded.image, fabric=fabric_for(device, threads)
    )
    content = {"model": str(model_file), "split": name, **metrics.model_dump(mode="json")}
    if file:
        write_json(file, content)
    if as_json:
        print_json(content)
        return
    say(f"{model_file} on {metrics.images} {name} images", "bold")
    out.print(_table(metrics))
    if file:
        say(f"written to {file}")


def _table(metrics: Metrics) -> Table:
    """Every metric with its interval where it has one, then the recall of every class."""
    table = plain_table("metric", ("value", "95 % interval"))
    for label, key in LABELS.items():
        interval = metrics.intervals.get(key)
        shown = units.interval(interval, units.decimal) if interval else ""
        table.add_row(label, units.decimal(getattr(metrics, key)), shown)
    table.add_row()
    for name, value in metrics.recall.items():
        shown = "no image" if value is None else units.decimal(value)
        table.add_row(escape(f"recall of {name}"), shown)
    return table


def _choose(splits: Splits, split: Split, data: str) -> tuple[str, ImageSet]:
    order = ("test", "val", "train") if split == "auto" else (split,)
    for name in order:
        images: ImageSet | None = getattr(splits, name)
        if images is not None and len(images):
            return name, images
    raise OneRoundError(
        f"there is no {split} image.", file=data, remedy="Choose another --split, or add images."
    )
