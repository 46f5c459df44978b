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
