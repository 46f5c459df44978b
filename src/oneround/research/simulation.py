"""Simulation of many sites in one process, on one data set, for research and for the demo.

It calls the same functions as the hospitals and the coordinator do, one after the other. The test
split is used at the very end, and only to report.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from oneround import methods
from oneround.coordinator.aggregate import (
    Changes,
    collect_results,
    ensemble_of,
    ledger_of,
    limit,
    make_global_model,
)
from oneround.coordinator.results import Models, Results, SiteMetrics
from oneround.data import ImageSet, Splits, describe, read_splits
from oneround.data.partition import by_site, dirichlet_shares, equal_shares, split_by_shares
from oneround.errors import OneRoundError
from oneround.evaluation import compare, measure, predict
from oneround.methods import Method, SimulatedSites
from oneround.model_file import Model
from oneround.models.ensemble import RULES, Ensemble, Rule, average
from oneround.runs.callbacks import Callback, Progress, progress_of, silent
from oneround.runs.device import fabric_for
from oneround.runs.run import TRAINING, Run
from oneround.runs.stage import derived_seed
from oneround.schema import Strict, merged, parse_assignment
from oneround.site.training import train_client
from oneround.study import ArchitectureSpec, ImageSpec, Study, preset
from oneround.submission import Submission, read_submissions

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Partition = Literal["iid", "dirichlet", "site"]


def prepare(
    data: str | os.PathLike[str],
    *,
    size: int | None = None,
    architectures: Sequence[ArchitectureSpec] = (),
    preset_name: str = "quick",
    training: Sequence[str] = (),
    seed: int = 0,
    max_skipped: float = 0.05,
    download: bool = False,
    cache: str | os.PathLike[str] | None = None,
    on_progress: Progress = silent,
) -> tuple[Splits, Study]:
    """A data set, and a study that fits it.

    Args:
        data: Anything that :func:`oneround.data.read_splits` reads.
        size: Height and width of the images, in pixels; their own size by default.
        architectures: Allowed architectures; that of the preset by default.
        preset_name: Preset of architecture and training recipe.
        training: Changes to the training recipe, such as ``training.epochs=5``.
        seed: Seed of the study.
        max_skipped: See :func:`oneround.data.read_splits`.
        download: See :func:`oneround.data.read_splits`.
        cache: See :func:`oneround.data.read_splits`.
        on_progress: See :func:`oneround.data.read_splits`.

    Raises:
        OneRoundError: the data set cannot be read or has only one class, or an option is not
            allowed.
    """
    found = describe(data, download=download)
    if len(found.classes) < 2:
        raise OneRoundError(
            f"there is only one class, {', '.join(found.classes)}.",
            file=data,
            remedy="Add images of another class.",
        )
    side = {"height": size, "width": size} if size else {}
    image = ImageSpec.validate_options(found.image.model_dump() | side, "image options")
    splits = read_splits(
        data,
        image=image,
        classes=found.classes,
        max_skipped=max_skipped,
        download=download,
        cache=cache,
        on_progress=on_progress,
    )
    name = Path(data).stem
    return splits, study_for(name, found.classes, image, architectures, preset_name, training, seed)


def study_for(
    name: str,
    classes: Sequence[str],
    image: ImageSpec,
    architectures: Sequence[ArchitectureSpec],
    preset_name: str,
    training: Sequence[str],
    seed: int,
) -> Study:
    """The study of a simulation; see :func:`prepare`."""
    network, recipe = preset(preset_name, image)
    content: dict[str, Any] = {"training": recipe.model_dump()}
    for change in training:
        content = merged(content, parse_assignment(change))
    content |= {"name": name, "classes": classes, "image": image, "seed": seed}
    content["architectures"] = tuple(architectures) or (network,)
    return Study.validate_options(content, "options of the study")


def simulate(
    splits: Splits,
    study: Study,
    *,
    sites: int,
    partition: Partition,
    out: str | os.PathLike[str],
    method: str | Method = methods.DEFAULT,
    preset: str | None = None,
    options: Strict | Changes | None = None,
    beta: float = 0.6,
    flops: float | None = None,
    resume: bool = False,
    device: str = "auto",
    fabric: Fabric | None = None,
    callbacks: Sequence[Callback] = (),
) -> Results:
    """Simulate a study: divide the data, train and submit at each site, aggregate, evaluate.

    Args:
        splits: The data set; sites get disjoint parts of ``train`` and ``val``.
        study: The study; all random numbers, also those of the partition, follow from its seed.
            Site k uses architecture k modulo their number.
        sites: Number of sites; ignored if ``partition`` is ``site``.
        partition: ``iid``, ``dirichlet`` over labels, or ``site`` by the site column.
        out: RUN folder; see :func:`oneround.coordinator.aggregate.aggregate`.
        method: Name of the method, or a method of your own.
        preset: Preset of the method's options; ``quick`` by default.
        options: Changes to the preset, or complete options.
        beta: Concentration β of the Dirichlet partition, above 0.
        flops: Limit of FLOPs of the method; ``None``: no limit.
        resume: Whether to continue an interrupted run.
        device: Device to compute on; ``auto``: a GPU if there is one.
        fabric: Device and precision, in place of ``device``.
        callbacks: Called after every step.

    Returns:
        The content of ``results.json``.

    Raises:
        OneRoundError: there are no test images, the partition is not possible, the study does not
            allow a site, or training or the method fails.
    """
    if splits.test is None or not len(splits.test):
        raise OneRoundError(
            "the data set has no test images to report on.",
            remedy="Add a test split, or use `oneround train` and `oneround aggregate`.",
        )
    method, options = methods.configured(method, preset, options)
    parts = divide(splits, study, sites, partition, beta)
    for site in parts:
        study.require_site(site)
    configuration = {
        "study": study.agreement(),
        "partition": {"kind": partition, "sites": len(parts), "beta": beta},
        "class_counts": {site: train.class_counts().tolist() for site, (train, _) in parts.items()},
        "method": method.name,
        "options": options.model_dump(mode="json"),
    } | limit(flops)
    with Run(
        out, configuration, seed=study.seed, resume=resume, fabric=fabric or fabric_for(device),
        callbacks=callbacks, flops=flops or math.inf, simulated=SimulatedSites(study, parts),
    ) as run:  # fmt: skip
        assert run.path is not None, "it was given"
        submissions = train_sites(run, study, parts)
        made = make_global_model(run, study, submissions, method, options)
        rule: Rule = getattr(options, "rule", "auto")
        models, notes = evaluate_all(run, study, submissions, made, splits.test, rule)
        results = collect_results(run, study, submissions, method, options, models, made, notes)
        results.write(run.path)
        ledger_of(run, results).write(run.path)
    return results


def divide(
    splits: Splits, study: Study, sites: int, partition: Partition, beta: float
) -> dict[str, tuple[ImageSet, ImageSet | None]]:
    """Training and validation images of each site, by its name; arguments as :func:`simulate`.

    Raises:
        OneRoundError: the partition is not possible.
    """
    if partition == "site":
        return _by_column(splits)
    if len(splits.train) < sites:
        raise OneRoundError(
            f"{len(splits.train)} training images cannot be divided among {sites} sites.",
            remedy="Use fewer sites.",
        )
    generator = torch.Generator().manual_seed(derived_seed(study.seed, "partition"))
    counts = splits.train.class_counts()
    shares = equal_shares(len(counts), sites)
    if partition == "dirichlet":
        shares = dirichlet_shares(counts, sites, beta, generator)
    train = [
        splits.train.subset(i) for i in split_by_shares(splits.train.labels, shares, generator)
    ]
    val: Sequence[ImageSet | None] = [None] * sites
    if splits.val is not None:
        indices = split_by_shares(splits.val.labels, shares, generator)
        val = [splits.val.subset(i) if len(i) else None for i in indices]
    names = [f"site-{number + 1:0{len(str(sites))}}" for number in range(sites)]
    return dict(zip(names, zip(train, val, strict=True), strict=True))


def _by_column(splits: Splits) -> dict[str, tuple[ImageSet, ImageSet | None]]:
    if splits.train.sites is None:
        raise OneRoundError(
            "the data set does not say which image is from which site.",
            remedy="Add a column `site` to the CSV file, or use --partition iid or dirichlet.",
        )
    val = splits.val
    of_val = {} if val is None or val.sites is None else by_site(val.sites)
    return {
        site: (
            splits.train.subset(indices),
            None if val is None or site not in of_val else val.subset(of_val[site]),
        )
        for site, indices in by_site(splits.train.sites).items()
    }


def train_sites(
    run: Run, study: Study, parts: dict[str, tuple[ImageSet, ImageSet | None]]
) -> list[Submission]:
    """Train and submit at each site; submissions that exist already are kept."""
    assert run.path is not None, "submissions are files"
    folder = run.path / "submissions"
    folder.mkdir(exist_ok=True)
    paths = []
    for number, (site, (train, val)) in enumerate(parts.items()):
        architecture = study.architectures[number % len(study.architectures)]
        stage = run.stage(TRAINING, site, folder="sites")
        client = train_client(study, site, train, val, architecture=architecture, stage=stage)
        paths.append(folder / f"{site}.oneround")
        if not paths[-1].exists():
            client.write(paths[-1], study)
    return read_submissions(paths, study)


def evaluate_all(
    run: Run,
    study: Study,
    submissions: Sequence[Submission],
    made: Model,
    test: ImageSet,
    rule: Rule,
) -> tuple[Models, list[str]]:
    """Metrics of all models on the test images, and notes on models that could not be evaluated."""
    ensemble = ensemble_of(submissions, study)
    notes = [
        f"{s.manifest.site} has no training image of class {study.classes[c]}."
        for s in submissions
        for c, count in enumerate(s.manifest.class_counts or ())
        if count == 0
    ]
    tell, total = progress_of(run.callbacks), len(submissions) + len(RULES) + 2
    done = 0

    def measured(model: torch.nn.Module, name: str) -> dict[str, object]:
        nonlocal done
        found = predict(model, test, study.image, fabric=run.fabric)
        metrics = measure(found, test.labels, study.classes, patients=test.patients)
        done += 1
        tell("evaluation", done, total, name)
        if model is made.network:
            return metrics.model_dump()
        difference = compare(made_by, found, test.labels, patients=test.patients)
        return metrics.model_dump() | {"difference": difference}

    made_by = predict(made.network, test, study.image, fabric=run.fabric)
    sites = [
        SiteMetrics.model_validate(measured(client.model, client.site) | {"site": client.site})
        for client in ensemble.clients
    ]
    rules = {}
    for name in RULES:
        try:
            rules[name] = measured(_with_rule(ensemble, name), f"ensemble, {name}")
        except OneRoundError as error:
            notes.append(f"ensemble, {name}: {error.reason}")
    try:
        fedavg = measured(average(ensemble), "fedavg")
    except OneRoundError as error:
        fedavg = None
        notes.append(f"fedavg: {error.reason}")
    models = {
        "sites": sites,
        "fedavg": fedavg,
        "ensemble": rules[ensemble.with_rule(rule).rule],
        "rules": rules,
        "global": measured(made.network, "global model"),
    }
    return Models.model_validate(models), notes


def _with_rule(ensemble: Ensemble, name: str) -> Ensemble:
    rule: Rule = name  # type: ignore[assignment]
    return ensemble.with_rule(rule)
