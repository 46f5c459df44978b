"""Evaluations that sites have sent back: read, stored in the RUN folder, and pooled."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from oneround import signing
from oneround.coordinator.history import Ledger
from oneround.errors import OneRoundError
from oneround.files import read_json, write_atomic
from oneround.schema import Strict, validated
from oneround.site.evaluation import SiteEvaluation
from oneround.study import Study

LIMIT_BYTES = 1 << 24
"""Size limit of the file of one site, in bytes."""

FILE = "evaluations.json"
"""The file in the RUN folder."""

_Z = 1.96  # standard deviations on either side of a 95 % interval


def read_evaluation(path: str | os.PathLike[str], study: Study | None = None) -> SiteEvaluation:
    """Read the evaluation that a site sent; the file may be from anyone.

    Args:
        path: file of the site; if the study lists keys, its ``.sig`` file must be beside it.
        study: agreement to check it against; ``None``: its schema alone is checked.

    Raises:
        OneRoundError: the file breaks a rule, is of another study, or is not signed by its site.
    """
    path = Path(path)
    if path.is_file() and path.stat().st_size > LIMIT_BYTES:
        raise OneRoundError(
            f"the file is larger than {LIMIT_BYTES} bytes.",
            file=path,
            remedy="Give the file that `oneround evaluate --site` wrote.",
        )
    content = validated(SiteEvaluation, read_json(path), path, strictly=True)
    if study is None:
        return content
    if content.study_hash != study.hash:
        raise OneRoundError(
            f"written for another study, {content.study!r}.",
            file=path,
            remedy="Ask the site to evaluate with the study file that it trained with.",
        )
    study.require_site(content.site, path)
    if study.submission.keys:
        _require_signature(path, content.site, study)
    return content


def keep_evaluations(run: Path, evaluations: Sequence[SiteEvaluation]) -> None:
    """Store evaluations in a RUN folder; a newer one of a site replaces its older one.

    Args:
        run: RUN folder.
        evaluations: evaluations of the run's global model.

    Raises:
        OneRoundError: one is of another global model than that of the run.
    """
    model = Ledger.read(run).entries[-1].model
    for evaluation in evaluations:
        if evaluation.model != model:
            raise OneRoundError(
                f"{evaluation.site} has evaluated another model ({evaluation.model[:12]}…).",
                file=run,
                remedy=f"Send the site the model of this run ({model[:12]}…), and let it evaluate.",
            )
    kept = {evaluation.site: evaluation for evaluation in [*kept_evaluations(run), *evaluations]}
    content = [kept[site].model_dump(mode="json", by_alias=True) for site in sorted(kept)]
    write_atomic(run / FILE, json.dumps(content, indent=1).encode() + b"\n")


def kept_evaluations(run: Path) -> list[SiteEvaluation]:
    """The evaluations in a RUN folder, in the order of the sites' names; empty: none is stored.

    Raises:
        OneRoundError: the file is damaged.
    """
    if not (run / FILE).exists():
        return []
    content = read_json(run / FILE)
    if not isinstance(content, list):
        raise OneRoundError(
            "it is no list of evaluations.",
            file=run / FILE,
            remedy="Delete it, and give the files of the sites again: oneround evaluate --collect.",
        )
    return [validated(SiteEvaluation, one, run / FILE) for one in content]


class Pooled(Strict):
    """All sites together, as if their images had been in one place.

    Attributes:
        images: number of images of all sites.
        accuracy: share of them that the global model classifies correctly.
        interval: 95 % interval of the accuracy (Wilson, JASA 1927), for images sampled from these
            sites; another hospital may differ.
        worst: site with the lowest accuracy of the global model.
        better: number of sites where the global model is at least as accurate as their own.
        compared: number of sites that have reported both models.
    """

    images: int
    accuracy: float
    interval: tuple[float, float]
    worst: str
    better: int
    compared: int


def pool(evaluations: Iterable[SiteEvaluation]) -> Pooled:
    """The pooled result of one or more evaluations of the same global model."""
    found = list(evaluations)
    images = sum(one.images for one in found)
    correct = sum(round(one.global_model.accuracy * one.images) for one in found)
    both = [(one.global_model.accuracy, one.own.accuracy) for one in found if one.own is not None]
    return Pooled(
        images=images,
        accuracy=correct / images,
        interval=wilson(correct, images),
        worst=min(found, key=lambda one: one.global_model.accuracy).site,
        better=sum(ours >= own for ours, own in both),
        compared=len(both),
    )


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """95 % score interval of the share ``hits / trials`` (Wilson, JASA 1927); in [0, 1]."""
    share, z2 = hits / trials, _Z**2 / trials
    middle = share + z2 / 2
    half = _Z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials))
    return (middle - half) / (1 + z2), (middle + half) / (1 + z2)


def _require_signature(path: Path, site: str, study: Study) -> None:
    public, signature = study.submission.keys.get(site), signing.signature_path(path)
    if public is None or not signature.is_file():
        what = (
            f"the study has no key of {site}" if public is None else f"{signature.name} is missing"
        )
        raise OneRoundError(
            f"it is not signed by {site}: {what}.",
            file=path,
            remedy="Ask the site to evaluate with --key, and to send both files.",
        )
    try:
        signing.verify({signing.WHOLE_FILE: path.read_bytes()}, signature.read_bytes(), public)
    except signing.WrongSignatureError as error:
        raise OneRoundError(
            f"this is not what {site} signed ({error}).",
            file=path,
            remedy="Ask the site to send both files again.",
        ) from error
