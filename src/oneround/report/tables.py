"""Tables of the page to download: CSV files in ``data:`` URIs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from oneround.bootstrap import CLASS_RATES
from oneround.report.summary import Row
from oneround.site.evaluation import ReportedMetrics, SiteEvaluation

_MODEL = ("accuracy", "balanced_accuracy", "auroc")
_SITE = ("accuracy", "balanced_accuracy")
_COST = ("flops", "seconds", "peak_memory_bytes")
_SUBMISSION = ("site", "file", "bytes", "signed_by", "sha256")


def tables(
    results: Mapping[str, Any], models: Sequence[Row], sites: Sequence[SiteEvaluation]
) -> dict[str, str]:
    """URIs of the tables that have rows, by name.

    Args:
        results: content of ``results.json``.
        models: models of the run that were evaluated; ``classes`` is of the first.
        sites: evaluations that the sites have sent back.
    """
    classes = (results.get("study") or {}).get("classes") or []
    found = {
        "sites": _sites(sites),
        "models": _models(models),
        "classes": _classes(models[0].metrics, classes) if models else [],
        "cost": _records("phase", _COST, (results.get("cost") or {}).items()),
        "submissions": _records(
            None, _SUBMISSION, ((None, one) for one in results.get("submissions") or [])
        ),
    }
    return {name: _uri(table) for name, table in found.items() if len(table) > 1}


def _models(models: Sequence[Row]) -> list[list[Any]]:
    table: list[list[Any]] = [["model", *_with_ends(_MODEL), "ece", "bytes_sent"]]
    for row in models:
        ends = row.metrics.get("intervals") or {}
        values = [v for name in _MODEL for v in _value(row.metrics.get(name), ends.get(name))]
        table.append([row.name, *values, row.metrics.get("ece"), row.bytes_sent])
    return table


def _classes(metrics: Mapping[str, Any], classes: Sequence[str]) -> list[list[Any]]:
    if not metrics.get("specificity"):
        return []
    table: list[list[Any]] = [["class", *_with_ends(CLASS_RATES)]]
    for name in classes:
        values = [
            v
            for rate in CLASS_RATES
            for v in _value(
                (metrics.get(rate) or {}).get(name),
                (metrics.get("class_intervals") or {}).get(rate, {}).get(name),
            )
        ]
        table.append([name, *values])
    return table


def _sites(sites: Sequence[SiteEvaluation]) -> list[list[Any]]:
    own = [*(f"own_{name}" for name in _SITE), "difference"]
    head = ["site", "split", "images", *_with_ends(_SITE), "auroc", "ece", *_with_ends(own)]
    table: list[list[Any]] = [head]
    for site in sites:
        shared = site.global_model
        apart = shared.accuracy - site.own.accuracy if site.own else None
        ends = site.difference.intervals.get("accuracy") if site.difference else None
        of_global = [*_of_site(shared), shared.auroc, shared.ece]
        of_own = [*_of_site(site.own), *_value(apart, ends)]
        table.append([site.site, site.split, site.images, *of_global, *of_own])
    return table


def _of_site(model: ReportedMetrics | None) -> list[float | None]:
    intervals = model.intervals if model else {}
    return [v for name in _SITE for v in _value(getattr(model, name, None), intervals.get(name))]


def _records(
    key: str | None, columns: Sequence[str], records: Iterable[tuple[Any, Any]]
) -> list[list[Any]]:
    """A row for each record that is one, after its name if ``key`` says what that is."""
    return [
        [*([key] if key else []), *columns],
        *(
            [*([name] if key else []), *(record.get(column) for column in columns)]
            for name, record in records
            if isinstance(record, Mapping)
        ),
    ]


def _with_ends(names: Iterable[str]) -> list[str]:
    return [end for name in names for end in (name, f"{name}_low", f"{name}_high")]


def _value(value: float | None, ends: Sequence[float] | None) -> list[float | None]:
    return [value, *(ends or (None, None))]


def _uri(table: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([[_cell(value) for value in row] for row in table])
    return "data:text/csv;charset=utf-8," + quote(text.getvalue())


def _cell(value: Any) -> Any:
    """The value; a text that a spreadsheet would take for a formula begins with an apostrophe."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula else value
