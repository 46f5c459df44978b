"""The model card: what everyone who receives the global model must know before using it."""

from __future__ import annotations

import re
from pathlib import Path

from oneround.coordinator.evaluations import kept_evaluations, pool
from oneround.coordinator.history import Entry, Ledger
from oneround.coordinator.results import Results
from oneround.files import write_atomic
from oneround.model_file import CONFIG, WEIGHTS, model_config
from oneround.report import units
from oneround.site.evaluation import SiteEvaluation


def write_model_card(run: Path) -> Path:
    """Write ``run/model-card.md`` from ``results.json``, ``config.json`` and the ledger.

    After Mitchell et al., *Model Cards for Model Reporting*, FAT* 2019.

    Raises:
        OneRoundError: one of these files is missing or damaged.
    """
    results, ledger, config = Results.read(run), Ledger.read(run), model_config(run)
    height, width = config.image.height, config.image.width
    networks = ", ".join(dict.fromkeys(map(str, config.architectures)))
    evaluated = kept_evaluations(run)
    measured = bool(evaluated) or results.models.global_model is not None
    lines = [
        f"# Global model of the study {config.study}",
        "",
        f"`{WEIGHTS}`, SHA-256 `{ledger.entries[-1].model}`, to be used with `{CONFIG}`.",
        "",
        "## Intended use",
        "",
        f"{config.intended_use} It gives one of {len(config.classes)} classes to an image: "
        f"{', '.join(config.classes)}. It gives one of them to any image, whatever it shows.",
        "",
        "## How it was made",
        "",
        f"One-shot federated learning with OneRound {results.oneround}, method `{results.method}`, "
        f"from {len(results.submissions)} client models that hospitals trained on their own "
        f"images. {_made_from(results)}",
        "",
        f"- input: {config.image.channels} × {height} × {width}, mean {list(config.image.mean)}, "
        f"std {list(config.image.std)}",
        f"- network: {networks}",
        f"- made: {results.created}; cost: {units.si(ledger.entries[-1].flops, 'FLOP')}",
        f"- study: hash `{results.study['hash']}`",
        "",
        "| site | submission, SHA-256 | signed by |",
        "|---|---|---|",
        *(
            f"| {record.site} | `{record.sha256}` | {record.signed_by or 'not signed'} |"
            for record in results.submissions
        ),
        "",
        "## History",
        "",
        *_history(ledger),
        "",
        "## How good it is",
        "",
        *_metrics(results, evaluated),
        "",
        "## What to watch",
        "",
        ("- " if measured else "- It has not been tested on any image. ")
        + "Evaluate it on your own images before any other use (`oneround evaluate`).",
        "- It was trained for the kinds of images that the sites had. It may be less accurate for "
        "other scanners, stains and patients, and nothing in its output says so.",
        "- The weights may reveal something about the images that client models were trained on: "
        "treat them as the study's agreement says.",
        *(f"- {_as_text(note)}" for note in results.notes),
        "",
    ]
    path = run / "model-card.md"
    write_atomic(path, "\n".join(lines).encode())
    return path


def _made_from(results: Results) -> str:
    """What the global model was made from, by the stages of the run."""
    if "centralized" in results.cost:
        return "In this simulation the images of all sites were pooled, to compare with."
    if "rounds" in results.cost:
        return "In this simulation the sites trained again in every round of FedAvg."
    also = "and from synthesized images" if "synthesis" in results.cost else "alone"
    return f"No image left a hospital: the global model was made from these models {also}."


def _as_text(note: str) -> str:
    """A note on one line, with Markdown escaped, since a part of it may come from a stranger."""
    return re.sub(r"([\\`*<>\[\]|#])", r"\\\1", " ".join(note.split()))


def _history(ledger: Ledger) -> list[str]:
    """One line for each global model, with late-joining and withdrawn sites."""
    return [f"{number}. {_described(entry)}" for number, entry in enumerate(ledger.entries, 1)]


def _described(entry: Entry) -> str:
    sites = ", ".join(entry.submissions)
    made = f"{entry.created}, model `{entry.model[:12]}…`, from {sites}"
    if entry.how == "extension":
        return (
            f"{made}: {', '.join(entry.added)} came late, and the run of the earlier model was "
            "continued."
        )
    if entry.how == "withdrawal":
        gone = ", ".join(entry.withdrawn)
        return (
            f"{made}: {gone} withdrew. This model was made again from the remaining submissions, "
            f"and nothing that was computed from a submission of {gone} went into it. "
            f"Earlier models that {gone} contributed to must not be used any more."
        )
    return f"{made}."


def _metrics(results: Results, sites: list[SiteEvaluation]) -> list[str]:
    if sites:
        pooled = pool(sites)
        lines = [
            f"At the sites, on {pooled.images} images of their own: accuracy {pooled.accuracy:.3f} "
            f"(95 % interval {pooled.interval[0]:.3f} to {pooled.interval[1]:.3f}).",
            "",
            "| site | images | accuracy | accuracy of its own model |",
            "|---|---|---|---|",
        ]
        for one in sites:
            own = "not reported" if one.own is None else f"{one.own.accuracy:.3f}"
            lines.append(f"| {one.site} | {one.images} | {one.global_model.accuracy:.3f} | {own} |")
        return lines
    metrics = results.models.global_model
    if metrics is None:
        return [
            "Not measured at the coordinator. Metrics from the sites are in files of their own."
        ]
    low, high = metrics.intervals["accuracy"]
    return [
        f"On {metrics.images} test images: accuracy {metrics.accuracy:.3f} "
        f"(95 % interval {low:.3f} to {high:.3f}), balanced accuracy "
        f"{metrics.balanced_accuracy:.3f}, expected calibration error {metrics.ece:.3f}."
    ]
