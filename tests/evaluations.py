"""Evaluations of a tiny global model, as a site makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oneround.site.evaluation import SiteEvaluation, evaluate_at_site
from tests import tiny

STUDY = tiny.STUDY


def at_site(run: Path, site: str = "site-0", **changes: Any) -> SiteEvaluation:
    data = changes.pop("data", None) or tiny.images(60, seed=5)
    return evaluate_at_site(run, data, STUDY, site, split="test", **changes)


def changed(evaluation: SiteEvaluation, **changes: Any) -> SiteEvaluation:
    content = evaluation.model_dump(by_alias=True) | changes
    return SiteEvaluation.model_validate(content)


def made_up(
    evaluation: SiteEvaluation, site: str, images: int, right: int, own: int | None = None
) -> SiteEvaluation:
    """One of ``site`` whose images are all of the first class, ``right`` of them classified so."""

    def metrics(hits: int) -> dict[str, Any]:
        rows = [[0] * len(tiny.CLASSES) for _ in tiny.CLASSES]
        rows[0][:2] = hits, images - hits
        share = hits / images
        numbers = {"accuracy": share, "recall": {tiny.CLASSES[0]: share}, "confusion": rows}
        return evaluation.global_model.model_dump() | numbers

    return changed(
        evaluation,
        site=site,
        images=images,
        class_counts={tiny.CLASSES[0]: images},
        **{"global": metrics(right)},
        own=None if own is None else metrics(own),
    )
