"""The ServerApp: one message out to every site and one submission back; then the global model
out and metrics back.

A node that dies, one that is slow and one that sends rubbish are named, and the run goes on with
the rest, as long as there are k of n. What arrives becomes a file in ``inbox`` and passes the
checks of any other file; files that came there by another carrier count, too. So a run that was
stopped goes on when it is started again: who has handed in is not asked a second time.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Annotated

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp
from pydantic import BeforeValidator, Field

from oneround import coordination, handed_in, methods
from oneround.errors import OneRoundError
from oneround.files import write_atomic
from oneround.flower import show_log
from oneround.flower.conversation import Conversation, Node
from oneround.flower.messages import EVALUATE, HELLO, TRAIN, facts_of, files_of
from oneround.keys import ENCRYPTED_SUFFIX, Identity, is_encrypted, signature_path
from oneround.model_file import CONFIG, WEIGHTS
from oneround.report import write_model_card, write_report
from oneround.results import Results
from oneround.site_evaluation import keep_evaluations, read_evaluation
from oneround.study import Strict, Study
from oneround.submission import LIMIT_BYTES, read_submission, read_submissions

log = logging.getLogger("oneround.flower")

app = ServerApp()

METRICS = "metrics.json"

OptionalPath = Annotated[Path | None, BeforeValidator(lambda value: value or None)]


class Settings(Strict):
    """The options of ``flwr run --run-config``, where they are written with ``-`` for ``_``.

    Attributes:
        study: the study file; k of n, deadline and keys are those of its ``hand_in``.
        inbox: folder for the submissions.
        out: RUN folder.
        identity: opens encrypted submissions; its passphrase is in ``ONEROUND_PASSPHRASE``.
        method, preset, seed: as for ``oneround distill``.
        options: as ``--set`` of ``oneround distill``, separated by spaces.
        extend: RUN folder of the global model so far, as for ``oneround distill``; its method and
            options are taken.
        lifetime_hours: how long a site may take for its answer, as long as its node lives.
        wait_minutes: how long sites that are not online are waited for.
        poll_seconds: how often answers are looked for.
        sites: in a simulation, the folder with one folder for each hospital.
    """

    study: Path
    inbox: Path
    out: Path
    identity: OptionalPath = None
    method: str = "kang2025"
    preset: str = "quick"
    options: str = ""
    extend: OptionalPath = None
    seed: int = Field(default=0, ge=0)
    lifetime_hours: float = Field(default=24, gt=0)
    wait_minutes: float = Field(default=5, ge=0)
    poll_seconds: float = Field(default=3, gt=0)
    sites: str = ""

    @classmethod
    def of(cls, context: Context) -> Settings:
        """The settings of a run.

        Raises:
            OneRoundError: a key is missing, unknown or wrong.
        """
        given = {key.replace("-", "_"): value for key, value in context.run_config.items()}
        return cls.validate_options(given, "--run-config")

    def conversation(self, grid: Grid, deadline: float = float("inf")) -> Conversation:
        """With all nodes, until a deadline in seconds since 1970."""
        until = min(deadline, time.time() + 3600 * self.lifetime_hours)
        return Conversation(grid, until, 60 * self.wait_minutes, self.poll_seconds)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """From sites that are online to one global model, and what they say of it."""
    show_log()
    federate(grid, Settings.of(context))


def federate(grid: Grid, settings: Settings) -> None:
    """One round.

    Raises:
        OneRoundError: fewer than k submissions are right, or no global model can be made of them.
    """
    study = Study.read(settings.study)
    secret = os.environ.get("ONEROUND_PASSPHRASE")
    identity = Identity(settings.identity, secret) if settings.identity else None
    inbox = Inbox(settings.inbox, study, identity)
    notes = gather(grid, settings, inbox)
    files = inbox.enough(notes)
    distill(study, files, identity, settings)
    notes += evaluate(grid, settings, study)
    write_pages(settings.out, notes)
    log.info("done: %s", settings.out / "report.html")


class Inbox:
    """The folder of submissions: what comes in is checked before it gets its name.

    Args:
        folder: may hold files that came by another carrier; made if it is not there.
        study: the agreement.
        identity: opens encrypted files.

    Attributes:
        sites: of which a file is accepted.
    """

    def __init__(self, folder: Path, study: Study, identity: Identity | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.study, self.identity = folder, study, identity
        self.sites = {file.site for file in self._status().files if file.accepted}

    def _status(self) -> handed_in.Status:
        paths = handed_in.submissions_in(self.folder)
        return handed_in.status(self.study, paths, identity=self.identity)

    def complete(self) -> bool:
        """Whether all sites that the study knows have handed in."""
        expected = handed_in.expected_sites(self.study)
        return bool(expected) and self.sites.issuperset(expected)

    def take(self, content: bytes) -> str:
        """Keep what a node sent, and return its site.

        Raises:
            OneRoundError: it is no submission to this study, or the site has handed in before.
        """
        if len(content) > LIMIT_BYTES:
            raise OneRoundError(f"the file is larger than {LIMIT_BYTES} bytes.")
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".") as folder:
            part = Path(folder, "from-a-node.oneround")
            part.write_bytes(content)
            site = read_submission(part, self.study, identity=self.identity).manifest.site
        if site in self.sites:
            raise OneRoundError(f"{site} has handed in before; that file stays.")
        suffix = ENCRYPTED_SUFFIX if is_encrypted(content[:64]) else ""
        write_atomic(self.folder / f"{site}.oneround{suffix}", content)
        self.sites.add(site)
        return site

    def enough(self, notes: list[str]) -> list[Path]:
        """The accepted files.

        Raises:
            OneRoundError: there are fewer than k, or they do not go together.
        """
        found = self._status()
        if not found.enough:
            problems = [*notes, *map(str, found.together)]
            raise OneRoundError(
                f"{found.accepted} submission(s) of the {found.at_least} that are needed. "
                + " ".join(problems),
                file=self.folder,
                remedy="See to these sites, then start the same run again: it goes on from here.",
            )
        return [self.folder / file.file for file in found.files if file.accepted]


def gather(grid: Grid, settings: Settings, inbox: Inbox) -> list[str]:
    """One message to every site, one submission back; what went wrong, for the report."""
    study = inbox.study
    deadline = study.hand_in.deadline
    talk = settings.conversation(grid, deadline.timestamp() if deadline else float("inf"))

    def take(node: Node, reply: Message) -> None:
        facts, kind = facts_of(reply), reply.metadata.message_type
        if facts.get("done") is not True:
            node.end("could not do it; the log of the site says why")
        elif kind == TRAIN:
            _take_submission(node, reply, inbox)
        elif facts.get("study") != study.hash:
            node.end("has another study; send it the study file again")
        elif node.site in inbox.sites:
            node.end("has handed in before", well=True)
        else:
            log.info("%s is asked to train", node)
            talk.ask(node, TRAIN, {"study": study.hash})

    talk.run(lambda node: talk.ask(node, HELLO, {}), take, inbox.complete)
    accepted = inbox.sites
    named = {node.site for node in talk.nodes}
    missing = [s for s in handed_in.expected_sites(study) if s not in accepted | named]
    return [
        *(f"{node} {node.outcome}." for node in talk.nodes if not node.well),
        *(f"{site}: no node said that it was this site." for site in missing),
    ]


def _take_submission(node: Node, reply: Message, inbox: Inbox) -> None:
    try:
        (content,) = files_of(reply).values()
        site = inbox.take(content)
    except ValueError:
        node.end("sent no submission")
    except OneRoundError as error:
        node.end(f"sent a file that is refused: {error.reason}")
    else:
        node.end(f"has handed in: {site}, {len(content):,} bytes", well=True)


def distill(study: Study, files: list[Path], identity: Identity | None, settings: Settings) -> None:
    """The global model, as ``oneround distill`` makes it; goes on with an interrupted run."""
    method = options = None
    if settings.extend is None:
        method = methods.get(settings.method)
        options = method.resolve(settings.preset, settings.options.split())
    shown: dict[str, int] = {}

    def progress(stage: str, done: int, total: int, note: str) -> None:
        tenth = 10 * done // max(1, total)
        if shown.get(stage) != tenth:
            shown[stage] = tenth
            log.info("%s: %s of %s", stage, done, total)

    log.info("distillation from %s submissions", len(files))
    coordination.distill(
        study,
        read_submissions(files, study, identity=identity),
        out=settings.out,
        method=method,
        options=options,
        seed=settings.seed,
        extends=settings.extend,
        resume=(settings.out / "configuration.json").exists(),
        progress=progress,
    )


def evaluate(grid: Grid, settings: Settings, study: Study) -> list[str]:
    """The global model to every site, metrics back; what went wrong, for the report."""
    run = settings.out
    files = {name: (run / name).read_bytes() for name in (WEIGHTS, CONFIG)}
    talk = settings.conversation(grid)
    told: set[str] = set()

    def take(node: Node, reply: Message) -> None:
        facts = facts_of(reply)
        if facts.get("done") is not True:
            node.end("could not evaluate; the log of the site says why")
        elif facts.get("told") is False:
            node.end("tells no metrics", well=True)
        else:
            _take_metrics(node, reply, run, study, told)

    expected = set(handed_in.expected_sites(study))
    greet = partial(talk.ask, kind=EVALUATE, facts={"study": study.hash}, files=files)
    talk.run(greet, take, lambda: bool(expected) and expected <= told)
    return [f"Evaluation: {node} {node.outcome}." for node in talk.nodes if not node.well]


def _take_metrics(node: Node, reply: Message, run: Path, study: Study, told: set[str]) -> None:
    files = files_of(reply)
    with tempfile.TemporaryDirectory(dir=run, prefix=".") as folder:
        path = Path(folder, METRICS)
        for part in (path, signature_path(path)):
            if part.name in files:
                part.write_bytes(files[part.name])
        try:
            found = read_evaluation(path, study)
            keep_evaluations(run, [found])
        except OneRoundError as error:
            node.end(f"sent metrics that are refused: {error.reason}")
            return
    told.add(found.site)
    node.end(f"has evaluated: accuracy {found.global_model.accuracy:.3f}", well=True)


def write_pages(run: Path, notes: list[str]) -> None:
    """Report and model card, with what went wrong on the way."""
    results = Results.read(run)
    results.model_copy(update={"notes": notes}).write(run)
    write_report(run)
    write_model_card(run)
