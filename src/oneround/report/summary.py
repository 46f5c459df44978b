"""The models of a run in comparison, and their verdict in one paragraph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oneround.coordinator.evaluations import Pooled
from oneround.report.units import SPACE, percent, points

_COMBINED = {
    "global": "Global model",
    "ensemble": "Ensemble",
    "fedavg": "One-shot FedAvg",
}


@dataclass(frozen=True)
class Row:
    """One model of a run.

    Attributes:
        name: Name of the model on the page.
        kind: Its key among the ``models`` of ``results.json``.
        metrics: Its metrics on the test images, by name.
        bytes_sent: Bytes that were sent for it; ``None``: not known.
    """

    name: str
    kind: str
    metrics: Mapping[str, Any]
    bytes_sent: int | None


def rows(results: Mapping[str, Any]) -> list[Row]:
    """All models that were evaluated: global model, ensemble, FedAvg, then those of the sites."""
    models = results.get("models") or {}
    in_all = (results.get("cost") or {}).get("bytes_sent")
    sent = {s["site"]: s.get("bytes") for s in results.get("submissions") or []}
    combined = [
        Row(name, kind, models[kind], in_all)
        for kind, name in _COMBINED.items()
        if models.get(kind)
    ]
    sites = [
        Row(site["site"], "sites", site, sent.get(site["site"]))
        for site in models.get("sites") or []
    ]
    return combined + sites


def verdict(models: Sequence[Row], pooled: Pooled | None = None) -> str:
    """The first model in comparison with the best site and all combined models, in one paragraph;
    or, if no model was evaluated here, the metrics that the sites report together."""
    if not models and pooled:
        return (
            "The global model was made without a single image. At the sites it reaches "
            f"{percent(pooled.accuracy)} accuracy on {pooled.images:,} of their own images; it is "
            f"lowest at {pooled.worst}."
        )
    if not models:
        return (
            "The global model was made without a single image, so its accuracy is not known "
            "here. Evaluation happens at the sites, and only metrics come back."
        )
    first, *rest = models
    sites = [row for row in rest if row.kind == "sites"]
    best = sorted(sites, key=lambda row: row.metrics["accuracy"])[-1:]
    others = best + [row for row in rest if row.kind != "sites"]
    sentence = (
        f"{_subject(first)} reaches {percent(first.metrics['accuracy'])} accuracy "
        f"on {first.metrics['images']:,} test images"
    )
    if others:
        sentence += ": " + _list([_comparison(first, other) for other in others])
    return sentence + "."


def _comparison(model: Row, other: Row) -> str:
    difference = 100 * (model.metrics["accuracy"] - other.metrics["accuracy"])
    size = f"{abs(difference):.1f}"
    words = f"{size} points {'above' if difference > 0 else 'below'}"
    if size == "0.0":
        words = "level with"
    value = percent(other.metrics["accuracy"])
    return f"{words} {_object(other)} ({value}{_difference_interval(other)})"


def _difference_interval(other: Row) -> str:
    """The paired interval of the global model minus ``other``, if the run has it."""
    ends = ((other.metrics.get("difference") or {}).get("intervals") or {}).get("accuracy")
    if not ends:
        return ""
    return f"; 95{SPACE}% interval of the difference {points(ends[0])} to {points(ends[1])} points"


def _subject(row: Row) -> str:
    return row.name if row.kind in ("sites", "fedavg") else f"The {row.name.lower()}"


def _object(row: Row) -> str:
    if row.kind == "sites":
        return f"the best site alone, {row.name}"
    return "one-shot FedAvg" if row.kind == "fedavg" else f"the {row.name.lower()}"


def _list(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
