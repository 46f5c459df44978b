"""Write ``report.html`` from the files of a run; nothing is computed again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oneround.coordinator.evaluations import kept_evaluations, pool
from oneround.errors import OneRoundError
from oneround.files import read_json, write_atomic
from oneround.report.charts import Chart, line_chart, phase_charts, reliability_chart
from oneround.report.html import environment
from oneround.report.pictures import read_gallery
from oneround.report.summary import rows, verdict
from oneround.report.tables import tables


def write_report(run: Path) -> Path:
    """Write ``run/report.html``, a page without external links or scripts.

    Reads ``results.json`` and, if they exist, ``curves.json`` and ``gallery.safetensors``; the
    page leaves out what they do not contain.

    Returns:
        The path of the page.

    Raises:
        OneRoundError: ``results.json`` is missing, or a file cannot be read.
    """
    results = _read_object(run / "results.json")
    if not results:
        raise OneRoundError(
            "there are no results here.",
            file=run / "results.json",
            remedy="Give the RUN folder of `oneround simulate` or `oneround aggregate`.",
        )
    study = results.get("study") or {}
    curves = _read_object(run / "curves.json")
    models, sites = rows(results), kept_evaluations(run)
    pooled = pool(sites) if sites else None
    page = (
        environment(Path(__file__).parent)
        .get_template("page.html.j2")
        .render(
            results=results,
            sites=sites,
            pooled=pooled,
            study=study,
            models=models,
            verdict=verdict(models, pooled),
            tables=tables(results, models, sites),
            reliability=_reliability(models[0].metrics) if models else None,
            roc=_roc_chart(models[0].metrics) if models else None,
            curves={name: phase_charts(phase) for name, phase in curves.items() if phase},
            gallery=read_gallery(run / "gallery.safetensors", study.get("classes") or []),
            phases={k: v for k, v in (results.get("cost") or {}).items() if isinstance(v, Mapping)},
            options=_flat(results.get("options") or {}),
        )
    )
    path = run / "report.html"
    write_atomic(path, page.encode())
    return path


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; empty if there is no such file."""
    content = read_json(path) if path.exists() else {}
    if not isinstance(content, dict):
        raise OneRoundError(
            "this is not a JSON object.",
            file=path,
            remedy="Run the same command again with --resume, which writes it again.",
        )
    return content


def _roc_chart(metrics: Mapping[str, Any]) -> Chart | None:
    if not metrics.get("roc"):
        return None
    return line_chart(
        "ROC curve: true against false positive rate of each class",
        metrics["roc"],
        x_label="false positive rate",
        height=320,
    )


def _reliability(metrics: Mapping[str, Any]) -> Chart | None:
    bins = metrics.get("reliability")
    return reliability_chart(bins) if bins else None


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as ``a.b.c: value``."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
