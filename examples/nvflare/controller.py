"""The coordinator: one message out to every site and one submission back; then the global model
out and metrics back.

A client that fails, one that is late and one that sends rubbish are named in the log and in the
report, and the run continues with the rest, as long as there are k of n. What arrives becomes a
file in ``inbox`` at once and passes the checks of any other file. So a run that was stopped
continues when the job is submitted again with the same folders.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from messages import GLOBAL, SUBMISSION, facts_of, files_of, message
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.model_controller import ModelController

from oneround import methods
from oneround.coordinator.inbox import expected_sites
from oneround.errors import OneRoundError
from oneround.federation.coordinator import (
    aggregate_inbox,
    global_model,
    open_inbox,
    take_metrics,
    take_submission,
    write_pages,
)
from oneround.federation.site import Fact
from oneround.study import Study

Take = Callable[[Mapping[str, Fact], dict[str, bytes]], str]
"""Takes facts and files of a client and says what came, or raises :class:`OneRoundError`."""


class OneRound(ModelController):  # type: ignore[misc]
    """One round. FLARE writes the arguments into the server's part of the job.

    Args:
        study: Study file; k of n, deadline and keys are those of its ``submission``.
        inbox: Folder of submissions.
        out: RUN folder.
        identity: The coordinator's ``.identity`` file, which opens encrypted submissions; its
            passphrase is in ``ONEROUND_PASSPHRASE``.
        method: Method, as for ``oneround aggregate``.
        preset: Preset of the method, as for ``oneround aggregate``.
        options: Changes of options, as ``--set`` of ``oneround aggregate``, separated by spaces.
        seed: Seed of the run.
        hours: Hours that a client may take for an answer.
    """

    def __init__(
        self,
        study: str,
        inbox: str,
        out: str,
        identity: str = "",
        method: str = "headfit",
        preset: str = "quick",
        options: str = "",
        seed: int = 0,
        hours: float = 24.0,
    ) -> None:
        # FLARE keeps no model, and no client that fails ends the job: OneRound counts k of n.
        super().__init__(persistor_id="", ignore_result_error=True)
        self.study, self.inbox, self.out, self.identity = study, inbox, out, identity
        self.method, self.preset, self.options, self.seed = method, preset, options, seed
        self.hours = hours

    def run(self) -> None:
        """From sites that are online to one global model, and their metrics of it."""
        study, out, method = Study.read(self.study), Path(self.out), methods.get(self.method)
        options = method.resolve(self.preset, self.options.split())
        inbox = open_inbox(self.inbox, study, self.identity)

        def submission(facts: Mapping[str, Fact], files: dict[str, bytes]) -> str:
            if facts.get("site") in inbox.sites:
                return "has submitted before; that file stays"
            found = take_submission(inbox, files)
            return f"has submitted: {found.site}, {found.bytes:,} bytes"

        def metrics(facts: Mapping[str, Fact], files: dict[str, bytes]) -> str:
            if facts.get("told") is False:
                return "withholds its metrics"
            found = take_metrics(out, study, files)
            return f"has evaluated: accuracy {found.global_model.accuracy:.3f}"

        online = set(self.sample_clients())
        notes = self._ask(SUBMISSION, study, {}, submission)
        missing = [s for s in expected_sites(study) if s not in online | inbox.sites]
        notes += [f"{site}: not online at the start, or refused the job." for site in missing]
        aggregate_inbox(inbox, out, notes=notes, method=method, options=options, seed=self.seed)
        failed = self._ask(GLOBAL, study, global_model(out), metrics)
        notes += [f"Evaluation: {note}" for note in failed]
        write_pages(out, notes)
        self.info(f"done: {out / 'report.html'}")

    def _ask(self, task: str, study: Study, files: Mapping[str, bytes], take: Take) -> list[str]:
        """One task for all clients that are online now; what went wrong, for the report."""
        silent, notes = set(self.sample_clients()), []

        def callback(reply: FLModel) -> None:
            client = reply.meta["client_name"]  # set by FLARE, which knows its certificate
            try:
                if reply.meta.get("done") is not True:
                    raise OneRoundError("could not do it; the log of the site says why.")
                self.info(f"{client} {take(facts_of(reply), files_of(reply))}")
            except OneRoundError as error:
                notes.append(f"{client}: {error.reason}")
                self.warning(notes[-1])
            silent.discard(client)

        seconds, deadline = 3600 * self.hours, study.submission.deadline
        if task == SUBMISSION and deadline:
            seconds = min(seconds, deadline.timestamp() - time.time())
        question = message({"study": study.hash}, files)
        self.send_model(task, question, timeout=max(1, int(seconds)), callback=callback)
        while self.get_num_standing_tasks():
            if self.abort_signal.triggered:
                raise OneRoundError("the job was stopped; what has arrived stays in the inbox.")
            time.sleep(0.5)
        return notes + [f"{name}: failed, or did not answer in time." for name in sorted(silent)]
