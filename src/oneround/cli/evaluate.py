"""``oneround evaluate``: how good a model is on local images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from oneround import evaluation
from oneround.cli.console import (
    AsJson,
    CacheFolder,
    DataPath,
    DeviceName,
    Download,
    MaxSkipped,
    Threads,
    out,
    passphrase_of,
    plain_table,
    print_json,
    read_with_progress,
    say,
)
from oneround.errors import OneRoundError
from oneround.evaluation import Metrics
from oneround.files import require_folder, write_json
from oneround.model_file import load_model
from oneround.report import units
from oneround.runs.device import fabric_for
from oneround.site.evaluation import (
    SiteEvaluation,
    Split,
    chosen_split,
    evaluate_at_site,
    write_evaluation,
)
from oneround.study import Study

LABELS = {
    "accuracy": "accuracy",
    "balanced accuracy": "balanced_accuracy",
    "AUROC": "auroc",
    "calibration error": "ece",
}


CLASS_LABELS = {
    "sensitivity (recall)": "recall",
    "specificity": "specificity",
    "positive predictive value": "ppv",
    "negative predictive value": "npv",
    "prevalence": "prevalence",
}


def evaluate(
    model_file: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="Model: global.safetensors, a submission or a RUN folder.",
            show_default=False,
        ),
    ],
    data: DataPath,
    file: Annotated[Path | None, typer.Option("--out", help="JSON file to write.")] = None,
    study_file: Annotated[
        Path | None,
        typer.Option("--study", help="Study; with --site, --out is the file to send back."),
    ] = None,
    site: Annotated[str | None, typer.Option(help="Name of this site.", show_default=False)] = None,
    own: Annotated[
        Path | None,
        typer.Option(help="The site's own submission, to compare with.", show_default=False),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="The site's .key file, to sign with.", show_default=False)
    ] = None,
    split: Annotated[
        Split, typer.Option(help="Images to evaluate on; auto: test, or else val, or else all.")
    ] = "auto",
    max_skipped: MaxSkipped = 0.05,
    download: Download = False,
    cache: CacheFolder = None,
    device: DeviceName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model on local images: metrics with 95 % intervals, and no image leaves.

    Example: `oneround evaluate run/global.safetensors --data images/ --out metrics.json`

    To send back: `oneround evaluate global.safetensors --data images/ --study blood.toml
    --site north --own north.oneround --key north.key --out north.json`
    """
    if file:
        require_folder(file)
    _require_all_or_none(study_file, site, file, own, key)
    fabric = fabric_for(device, threads)
    loaded = load_model(model_file)
    splits = read_with_progress(
        data, loaded.task, site=site, max_skipped=max_skipped, download=download, cache=cache
    )
    name, images = chosen_split(splits, split, data)
    if study_file and site and file:
        study = Study.read(study_file)
        found = evaluate_at_site(
            model_file, images, study, site, split=name, own=own, fabric=fabric
        )
        passphrase = passphrase_of(key) if key else None
        files = write_evaluation(file, found, key=key, passphrase=passphrase)
        _show_report(found, files, as_json)
        return
    metrics = evaluation.evaluate(loaded.network, images, loaded.task.image, fabric=fabric)
    content = {"model": str(model_file), "split": name, **metrics.model_dump(mode="json")}
    if file:
        write_json(file, content)
    if as_json:
        print_json(content)
        return
    say(f"{model_file} on {metrics.images} {name} images", "bold")
    out.print(_table(metrics))
    for table in _class_tables(metrics):
        out.print()
        out.print(table)
    over = f"{metrics.patients} patients" if metrics.patients else "images"
    say(f"Intervals: bootstrap over {over}; Wilson's where a share is 0 or 1.")
    if file:
        say(f"written to {file}")


def _require_all_or_none(
    study: Path | None, site: str | None, file: Path | None, own: Path | None, key: Path | None
) -> None:
    if (study or site or own or key) and not (study and site and file):
        raise OneRoundError(
            "what is sent back needs --study, --site and --out.",
            remedy="Give all three, or none of --study, --site, --own and --key.",
        )


def _show_report(found: SiteEvaluation, files: list[Path], as_json: bool) -> None:
    """Print what is to leave the site, so that somebody can look at it before."""
    if as_json:
        print_json(found.model_dump(mode="json", by_alias=True))
        return
    say(f"{' and '.join(map(str, files))}: to be sent back", "bold")
    table = plain_table("model", LABELS, f"{found.images} {found.split} images of {found.site}")
    for name, metrics in (("global model", found.global_model), ("own model", found.own)):
        if metrics:
            cells = (units.decimal(getattr(metrics, key)) for key in LABELS.values())
            table.add_row(name, *cells)
    out.print(table)
    if found.difference:
        for key in ("accuracy", "balanced_accuracy"):
            ends = " to ".join(map(units.points, found.difference.intervals[key]))
            value = units.points(getattr(found.difference, key))
            say(f"  difference     {key.replace('_', ' ')} {value} points, 95 % {ends}")
    if found.left_out:
        say(
            f"  left out       {', '.join(found.left_out)}: fewer than {found.smallest_cell} images"
        )
    say("  it contains    counts and metrics; no image, no output for a single image")


def _table(metrics: Metrics) -> Table:
    """Every metric, with its interval if it has one."""
    table = plain_table("metric", ("value", "95 % interval"))
    for label, key in LABELS.items():
        interval = metrics.intervals.get(key)
        shown = units.interval(interval, units.decimal) if interval else ""
        table.add_row(label, units.decimal(getattr(metrics, key)), shown)
    return table


def _class_tables(metrics: Metrics) -> list[Table]:
    """One table for each class: sensitivity, specificity, predictive values, prevalence."""
    return [_class_table(metrics, name) for name in metrics.recall]


def _class_table(metrics: Metrics, name: str) -> Table:
    table = plain_table(escape(name), ("value", "95 % interval"))
    for label, rate in CLASS_LABELS.items():
        value = getattr(metrics, rate).get(name)
        interval = metrics.class_intervals.get(rate, {}).get(name)
        shown = units.interval(interval, units.decimal) if interval else ""
        table.add_row(label, "no image" if value is None else units.decimal(value), shown)
    return table
