"""The coordinator's part: submissions in, global model and results out; no image needed."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneround import methods
from oneround.coordinator.history import Entry, Ledger
from oneround.coordinator.results import Models, Results, SubmissionRecord
from oneround.coordinator.updates import (
    FULL,
    Predecessor,
    Succession,
    extended_options,
    keep_bank,
    require_fresh_start,
    succession,
)
from oneround.coordinator.updates import kept as kept_of
from oneround.errors import OneRoundError
from oneround.files import sha256, write_json
from oneround.methods import GlobalModel, Method
from oneround.model_file import WEIGHTS, save_model
from oneround.models.ensemble import Client, Ensemble
from oneround.runs.run import Kept, Run, environment, log
from oneround.runs.stage import Progress, silent
from oneround.schema import Strict, now
from oneround.study import Study
from oneround.submission import Submission, check_against_study, check_together

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def distill(
    study: Study,
    submissions: Sequence[Submission],
    *,
    out: str | os.PathLike[str],
    method: str | Method | None = None,
    options: Strict | None = None,
    seed: int = 0,
    flops: float | None = None,
    resume: bool = False,
    extends: str | os.PathLike[str] | None = None,
    without: Sequence[str] = (),
    fabric: Fabric | None = None,
    progress: Progress = silent,
) -> GlobalModel:
    """One global model from submissions alone, written into the RUN folder ``out``.

    Args:
        study: the agreement.
        submissions: one for each site, from :func:`oneround.submission.read_submissions`.
        out: RUN folder; gets ``global.safetensors``, ``config.json``, ``results.json``, the
            image bank, the configuration and a log.
        method: name of a method, or a method of your own; by default that of the run in
            ``extends``, or ``methods.DEFAULT``.
        options: of the method; its preset ``quick``, or those of that run, by default.
        seed: of synthesis, noise and distillation.
        flops: the method ends when it has spent so many; ``None``: its options alone decide.
        resume: go on with an interrupted run; the result is bit-equal to an uninterrupted one.
        extends: RUN folder of an earlier global model. With further submissions beside all of
            its own the bank and the student go on from there; see :mod:`oneround.coordinator.updates`.
        without: sites that have withdrawn since: a full run, which takes nothing but options
            from the earlier one.
        fabric: device and precision; the CPU by default.
        progress: called with stage, steps done, steps in all and a note.

    Raises:
        OneRoundError: no submission, or some that do not go together or are not of ``study``, a
            RUN folder in use or of another configuration, options of another method, or a method
            that cannot work with these client models.
    """
    if not submissions:
        raise OneRoundError("there is no submission.", remedy="Give one file for each site.")
    refusals = [
        f"{s.path}: {problem}"
        for s in submissions
        for problem in check_against_study(s.manifest, study)
    ]
    refusals += map(str, check_together(submissions))
    if refusals:
        raise OneRoundError(
            "\n".join(["the submissions cannot be used together:", *refusals]),
            remedy="Correct or leave out these files, then run the same command again.",
        )
    before = Predecessor.read(Path(extends)) if extends is not None else None
    change = succession(before, submissions, without) if before else FULL
    if isinstance(method, str):
        method = methods.get(method)
    method = method or (before.method if before else methods.get())
    options = options or (before.options() if before else method.resolve())
    if not isinstance(options, method.options):
        raise OneRoundError(
            f"the options are those of another method than {method.name}.",
            remedy="Name their method too: distill(..., method=..., options=...).",
        )
    if change.how == "withdrawal":
        require_fresh_start(options)
    kept, earlier = Kept(), {}
    if before and change.how == "extension":
        earlier = {
            "extends": before.ledger.entries[-1].model,
            "full_options": options.model_dump(mode="json"),
        }
        kept = kept_of(before, change)
        ensemble = ensemble_of(submissions, study)
        options = extended_options(before, method, options, change, ensemble, study)
    configuration = (
        {
            "study": study.agreement(),
            "method": method.name,
            "options": options.model_dump(mode="json"),
            "seed": seed,
            "submissions": {s.manifest.site: s.sha256 for s in submissions},
        }
        | earlier
        | limit(flops)
    )
    with Run(
        out, configuration, seed=seed, resume=resume, fabric=fabric, progress=progress,
        flops=flops or math.inf, kept=kept,
    ) as run:  # fmt: skip
        if before and kept.shards and run.leads:
            keep_bank(before, run.path)
        made = make_global_model(run, study, submissions, method, options)
        if run.leads:
            results = collect_results(
                run, study, submissions, method, options, Models(), list(made.notes)
            )
            results.write(run.path)
            ledger_of(run, results, change, before).write(run.path)
    return made


def ledger_of(
    run: Run, results: Results, change: Succession = FULL, before: Predecessor | None = None
) -> Ledger:
    """The entries of the earlier run, and one for the global model of this run."""
    entry = Entry(
        model=results.hashes[WEIGHTS],
        created=results.created,
        oneround=results.oneround,
        method=results.method,
        how=change.how,
        submissions={record.site: record.sha256 for record in results.submissions},
        added=change.added,
        withdrawn=change.withdrawn,
        flops=run.spent().flops,
        folder=run.path.resolve().name,
    )
    return Ledger(entries=[*(before.ledger.entries if before else []), entry])


def limit(flops: float | None) -> dict[str, float]:
    """What the configuration of a run says of its limit of FLOPs."""
    return {} if flops is None else {"flops": flops}


def ensemble_of(submissions: Sequence[Submission], study: Study) -> Ensemble:
    """The client models of submissions, with the rule ``auto``."""
    return Ensemble(
        [
            Client(s.manifest.site, s.model, s.manifest.architecture, s.manifest.images,
                   s.manifest.class_counts, s.manifest.training.loss,
                   study.training.class_weighted)
            for s in submissions
        ]
    )  # fmt: skip


def make_global_model(
    run: Run, study: Study, submissions: Sequence[Submission], method: Method, options: Strict
) -> GlobalModel:
    """Run the method, and write the global model and the curves into the RUN folder."""
    ensemble = ensemble_of(submissions, study).to(run.fabric.device)
    made = method.function(ensemble, study, run, options)
    if run.leads:
        save_model(run.path, made.model, made.architectures, study, method.name)
        write_json(run.path / "curves.json", run.curves())
        log.info("global model written")
    return made


def collect_results(
    run: Run,
    study: Study,
    submissions: Sequence[Submission],
    method: Method,
    options: Strict,
    models: Models,
    notes: list[str],
) -> Results:
    """Everything that ``results.json`` says of a run."""
    counts = {s.manifest.site: s.manifest.class_counts for s in submissions}
    shared = {site: c for site, c in counts.items() if c is not None}
    costs: dict[str, Any] = dict(run.costs())
    study_facts = study.model_dump(mode="json", include={"name", "classes", "image"})
    return Results(
        oneround=environment()["oneround"],
        command=_command(sys.argv),
        created=now().isoformat(),
        method=method.name,
        study=study_facts | {"hash": study.hash},
        seeds={"study": study.seed, "run": run.seed},
        versions=environment(),
        options=run.configuration,
        models=models,
        notes=notes,
        cost=costs | {"bytes_sent": sum(s.size for s in submissions)},
        class_counts=shared if len(shared) == len(counts) else None,
        submissions=[
            SubmissionRecord(
                site=s.manifest.site,
                file=s.path.name,
                sha256=s.sha256,
                bytes=s.size,
                architecture=str(s.manifest.architecture),
                signed_by=s.signed_by,
            )
            for s in submissions
        ],
        hashes=_hashes(run.path),
    )


def _command(words: Sequence[str]) -> str:
    """The command line, if it is ours; those of other programs may hold secrets."""
    program = Path(words[0]).name if words else ""
    ours = program in ("oneround", "__main__.py")
    return shlex.join(["oneround", *words[1:]]) if ours else program


def _hashes(folder: Path) -> dict[str, str]:
    names = (WEIGHTS, "config.json", "configuration.json")
    return {name: sha256(folder / name) for name in names if (folder / name).is_file()}
