"""The ServerApp: one message out to every site and one submission back; then the global model
out and metrics back.

A node that dies, one that is slow and one that sends rubbish are named, and the run continues with
the rest, as long as there are k of n. What arrives becomes a file in ``inbox`` and passes the
checks of any other file; files that came there by another carrier count, too. So a run that was
stopped continues when it is started again: a site that has submitted is not asked a second time.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp
from pydantic import BeforeValidator, Field

from oneround import methods
from oneround.coordinator.inbox import Inbox, expected_sites
from oneround.errors import OneRoundError
from oneround.federation import show_log
from oneround.federation.coordinator import (
    aggregate_inbox,
    global_model,
    open_inbox,
    take_metrics,
    take_submission,
    write_pages,
)
from oneround.federation.flower.messages import EVALUATE, HELLO, TRAIN, facts_of, files_of
from oneround.federation.flower.polling import Conversation, Node
from oneround.schema import Strict
from oneround.study import Study

log = logging.getLogger("oneround.federation")

app = ServerApp()

OptionalPath = Annotated[Path | None, BeforeValidator(lambda value: value or None)]


class Settings(Strict):
    """The options of ``flwr run --run-config``, where they are written with ``-`` for ``_``.

    Attributes:
        study: Study file; k of n, deadline and keys are those of its ``submission``.
        inbox: Folder of submissions.
        out: RUN folder.
        identity: The coordinator's ``.identity`` file, which opens encrypted submissions; its
            passphrase is in ``ONEROUND_PASSPHRASE``.
        method: Method, as for ``oneround aggregate``.
        preset: Preset of the method, as for ``oneround aggregate``.
        options: Changes of options, as ``--set`` of ``oneround aggregate``, separated by spaces.
        extend: RUN folder of the global model so far, as for ``oneround aggregate``; its method
            and options are used.
        seed: Seed of the run.
        lifetime_hours: Hours that a site may take for its answer, as long as its node lives.
        wait_minutes: Minutes to wait for sites that are not online.
        poll_seconds: Seconds between two looks for answers.
        sites: Folder with one folder for each hospital, in a simulation only.
    """

    study: Path
    inbox: Path
    out: Path
    identity: OptionalPath = None
    method: str = methods.DEFAULT
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

    def aggregation(self) -> dict[str, Any]:
        """What is asked for, as arguments of
        :func:`oneround.federation.coordinator.aggregate_inbox`.

        Raises:
            OneRoundError: there is no such method, or it has no such options.
        """
        if self.extend is not None:
            return {"extends": self.extend, "seed": self.seed}
        method = methods.get(self.method)
        options = method.resolve(self.preset, self.options.split())
        return {"method": method, "options": options, "seed": self.seed}

    def conversation(self, grid: Grid, deadline: float = float("inf")) -> Conversation:
        """With all nodes, until a deadline in seconds since 1970."""
        until = min(deadline, time.time() + 3600 * self.lifetime_hours)
        return Conversation(grid, until, 60 * self.wait_minutes, self.poll_seconds)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """From sites that are online to one global model, and their metrics of it.

    What a person can mend, such as missing sites, is the last line of the log and no traceback.
    """
    show_log()
    try:
        federate(grid, Settings.of(context))
    except OneRoundError as error:
        log.error("not done: %s", error)


def federate(grid: Grid, settings: Settings) -> None:
    """One round.

    Raises:
        OneRoundError: fewer than k submissions are right, or no global model can be made of them.
    """
    study = Study.read(settings.study)
    inbox = open_inbox(settings.inbox, study, settings.identity)
    asked = settings.aggregation()
    notes = gather(grid, settings, inbox)
    aggregate_inbox(inbox, settings.out, notes=notes, **asked)
    notes += evaluate(grid, settings, study)
    write_pages(settings.out, notes)
    log.info("done: %s", settings.out / "report.html")


def gather(grid: Grid, settings: Settings, inbox: Inbox) -> list[str]:
    """One message to every site, one submission back; what went wrong, for the report."""
    study = inbox.study
    deadline = study.submission.deadline
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
            node.end("has submitted before", well=True)
        else:
            log.info("%s is asked to train", node)
            talk.ask(node, TRAIN, {"study": study.hash})

    talk.run(lambda node: talk.ask(node, HELLO, {}), take, inbox.complete)
    accepted = inbox.sites
    named = {node.site for node in talk.nodes}
    missing = [s for s in expected_sites(study) if s not in accepted | named]
    return [
        *(f"{node} {node.outcome}." for node in talk.nodes if not node.well),
        *(f"{site}: no node said that it was this site." for site in missing),
    ]


def _take_submission(node: Node, reply: Message, inbox: Inbox) -> None:
    try:
        found = take_submission(inbox, files_of(reply))
    except OneRoundError as error:
        node.end(error.reason.rstrip("."))
    else:
        node.end(f"has submitted: {found.site}, {found.bytes:,} bytes", well=True)


def evaluate(grid: Grid, settings: Settings, study: Study) -> list[str]:
    """The global model to every site, metrics back; what went wrong, for the report."""
    talk = settings.conversation(grid)
    reported: set[str] = set()

    def take(node: Node, reply: Message) -> None:
        facts = facts_of(reply)
        if facts.get("done") is not True:
            node.end("could not evaluate; the log of the site says why")
        elif facts.get("told") is False:
            node.end("withholds its metrics", well=True)
        else:
            _take_metrics(node, reply, settings.out, study, reported)

    expected = set(expected_sites(study))
    greet = partial(
        talk.ask, kind=EVALUATE, facts={"study": study.hash}, files=global_model(settings.out)
    )
    talk.run(greet, take, lambda: bool(expected) and expected <= reported)
    return [f"Evaluation: {node} {node.outcome}." for node in talk.nodes if not node.well]


def _take_metrics(node: Node, reply: Message, run: Path, study: Study, reported: set[str]) -> None:
    try:
        found = take_metrics(run, study, files_of(reply))
    except OneRoundError as error:
        node.end(f"sent metrics that are refused: {error.reason}")
    else:
        reported.add(found.site)
        node.end(f"has evaluated: accuracy {found.global_model.accuracy:.3f}", well=True)
