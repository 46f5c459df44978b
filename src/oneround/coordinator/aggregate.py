"""From submissions to the global model and its results; no image is needed."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneround import methods
from oneround.coordinator.cross_check import cross_check
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
from oneround.methods import Method
from oneround.model_file import WEIGHTS, Model
from oneround.models.ensemble import Client, Ensemble
from oneround.runs.callbacks import Callback
from oneround.runs.device import fabric_for
from oneround.runs.run import Kept, Run, environment
from oneround.schema import Strict, now
from oneround.study import Study
from oneround.submission import Submission, check_against_study, check_together

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Changes = Mapping[str, Any] | Sequence[str]
"""Options by name: ``{"distillation": {"steps": 500}}`` or ``["distillation.steps=500"]``."""


def aggregate(
    study: Study,
    submissions: Sequence[Submission],
    *,
    method: str | Method | None = None,
    preset: str | None = None,
    options: Strict | Changes | None = None,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    flops: float | None = None,
    resume: bool = False,
    extends: str | os.PathLike[str] | None = None,
    without: Sequence[str] = (),
    start: str | None = None,
    trust: Sequence[str] = (),
    device: str = "auto",
    fabric: Fabric | None = None,
    callbacks: Sequence[Callback] = (),
) -> Model:
    """One global model from submissions alone.

    Args:
        study: The agreement.
        submissions: One for each site, from :func:`oneround.submission.read_submissions`.
        method: Name of a method, or a method of your own; by default that of the run in
            ``extends``, or ``methods.DEFAULT``.
        preset: Name of a preset of the method; ``quick``, or the options of the run in
            ``extends``, by default.
        options: Changes of the preset, or all options of the method.
        out: RUN folder; gets ``global.safetensors``, ``config.json``, ``results.json``, the
            image bank, the configuration and a log. ``None``: everything stays in memory.
        seed: Seed of the method: synthesis, noise and distillation.
        flops: FLOPs that the method may spend; ``None``: its options alone decide.
        resume: Continue an interrupted run in ``out``; the result is bit-equal to an
            uninterrupted one.
        extends: RUN folder of an earlier global model. With further submissions beside all of
            its own, the image bank and the student continue from there; see
            :mod:`oneround.coordinator.updates`.
        without: Sites to leave out: their submissions are not used. With ``extends``, sites that
            have withdrawn since: a full run, which takes nothing but options from the earlier one.
        start: Site whose client model a student starts from, where the method starts from one;
            by default the method chooses.
        trust: Sites that are used even if the cross-check suspects them; see
            :mod:`oneround.coordinator.cross_check`.
        device: Where to compute; see :data:`oneround.runs.device.Device`.
        fabric: Device, precision and processes, in place of ``device``.
        callbacks: Callbacks that watch the run.

    Raises:
        OneRoundError: no submission, none of a site in ``start`` or ``trust``, some that are not of
            ``study`` or cannot be used together, outputs of a client model that are not finite, a
            RUN folder in use or of another configuration, options of another method, or a method
            that cannot work with these client models.
    """
    before = Predecessor.read(Path(extends)) if extends is not None else None
    method, options = _chosen(before, method, preset, options)
    if not before:
        submissions = [s for s in submissions if s.manifest.site not in without]
    _require_together(study, submissions)
    choice = Choice(start, tuple(trust))
    choice.require_sites(submissions)
    change = succession(before, submissions, without) if before else FULL
    if change.how == "withdrawal":
        require_fresh_start(options)
    kept, earlier = Kept(), {}
    if before and change.how == "extension":
        earlier = {
            "extends": before.ledger.entries[-1].model,
            "full_options": options.model_dump(mode="json"),
        }
        kept = kept_of(before, change)
        options = extended_options(before, method, options, change, ensemble_of(submissions, study))
    configuration = (
        {
            "study": study.agreement(),
            "method": method.name,
            "options": options.model_dump(mode="json"),
            "seed": seed,
            "submissions": {s.manifest.site: s.sha256 for s in submissions},
        }
        | earlier
        | choice.configuration()
        | limit(flops)
    )
    with Run(
        out, configuration, seed=seed, resume=resume, fabric=fabric or fabric_for(device),
        callbacks=callbacks, flops=flops or math.inf, kept=kept,
    ) as run:  # fmt: skip
        if before and kept.shards and run.path is not None and run.leads:
            keep_bank(before, run.path)
        made = make_global_model(run, study, submissions, method, options, choice)
        if run.path is not None and run.leads:
            results = collect_results(run, study, submissions, method, options, Models(), made)
            results.write(run.path)
            ledger_of(run, results, change, before).write(run.path)
    return made


def _chosen(
    before: Predecessor | None,
    method: str | Method | None,
    preset: str | None,
    options: Strict | Changes | None,
) -> tuple[Method, Strict]:
    """Method and options as asked for, or else those of the run that is extended."""
    if method is None and before is not None:
        method = before.method
        if preset is None and not isinstance(options, Strict):
            return method, before.options(options or ())
    return methods.configured(method or methods.DEFAULT, preset, options)


def _require_together(study: Study, submissions: Sequence[Submission]) -> None:
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


def ledger_of(
    run: Run, results: Results, change: Succession = FULL, before: Predecessor | None = None
) -> Ledger:
    """The ledger of a run: the entries of the earlier run, and one for its own global model."""
    assert run.path is not None, "a history is kept in a RUN folder"
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
    """The part of a run's configuration that limits its FLOPs."""
    return {} if flops is None else {"flops": flops}


def ensemble_of(
    submissions: Sequence[Submission], study: Study, start: str | None = None
) -> Ensemble:
    """The client models of submissions as one ensemble, with the combination rule ``auto``; a
    student that starts from one starts from that of the site ``start``, if it is given."""
    clients = [
        Client(s.manifest.site, s.model, s.manifest.architecture, s.manifest.images,
               s.manifest.class_counts, s.manifest.training.loss, study.training.class_weighted,
               s.manifest.site == start)
        for s in submissions
    ]  # fmt: skip
    return Ensemble(clients, study.task)


@dataclass(frozen=True)
class Choice:
    """What the coordinator decides about sites, over what their numbers say.

    Attributes:
        start: Site whose client model a student starts from; ``None``: the method chooses.
        trust: Sites that are used even if the cross-check suspects them.
    """

    start: str | None = None
    trust: tuple[str, ...] = ()

    @property
    def sites(self) -> set[str]:
        """All sites that are named."""
        return {*self.trust, *filter(None, [self.start])}

    def require_sites(self, submissions: Sequence[Submission]) -> None:
        """Refuse names of sites of which there is no submission.

        Raises:
            OneRoundError: there is one.
        """
        given = [s.manifest.site for s in submissions]
        if strangers := sorted(self.sites.difference(given)):
            raise OneRoundError(
                f"there is no submission of {', '.join(strangers)}.",
                remedy=f"Submissions are of {', '.join(given)}.",
            )

    def configuration(self) -> dict[str, Any]:
        """The part of a run's configuration that says so; empty if nothing is decided."""
        start = {} if self.start is None else {"start": self.start}
        return start | ({"trust": sorted(self.trust)} if self.trust else {})


def make_global_model(
    run: Run,
    study: Study,
    submissions: Sequence[Submission],
    method: Method,
    options: Strict,
    choice: Choice = Choice(),
) -> Model:
    """Check the client models against each other, run the method, and write the global model and
    the curves into the RUN folder."""
    ensemble = ensemble_of(submissions, study, choice.start).to(run.fabric.device)
    clients, suspects = cross_check(ensemble, run, keep=choice.sites)
    if clients != list(ensemble.clients):
        ensemble = ensemble.of(clients, "auto")
    made = method.function(ensemble, run, options)
    notes = [f"{suspect.site}: {suspect.why}" for suspect in suspects]
    made = replace(
        made,
        notes=(*notes, *made.notes),
        suspects=tuple(suspects),
        method=method.name,
        study=study.name,
        study_hash=study.hash,
    )
    if run.path is not None and run.leads:
        made.save(run.path)
        write_json(run.path / "curves.json", run.curves())
        run.say("global model written")
    return made


def collect_results(
    run: Run,
    study: Study,
    submissions: Sequence[Submission],
    method: Method,
    options: Strict,
    models: Models,
    made: Model,
    notes: Sequence[str] = (),
) -> Results:
    """The content of ``results.json`` of a run; ``notes`` come before those of the model."""
    assert run.path is not None, "results are those of a RUN folder"
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
        notes=[*notes, *made.notes],
        suspects=list(made.suspects),
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
    """The command line, if it is ours; that of another program may contain secrets."""
    program = Path(words[0]).name if words else ""
    ours = program in ("oneround", "__main__.py")
    return shlex.join(["oneround", *words[1:]]) if ours else program


def _hashes(folder: Path) -> dict[str, str]:
    names = (WEIGHTS, "config.json", "configuration.json")
    return {name: sha256(folder / name) for name in names if (folder / name).is_file()}
