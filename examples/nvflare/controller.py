"""The coordinator: one message out to every site and one submission back; then the global model
out and metrics back.

A client that fails, one that is late and one that sends rubbish are named in the log and in the
report, and the run goes on with the rest, as long as there are k of n. What arrives becomes a file
in ``inbox`` at once and passes the checks of any other file. So a run that was stopped goes on
when the job is submitted again with the same folders.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.model_controller import ModelController

from oneround import handed_in, methods
from oneround.errors import OneRoundError
from oneround.keys import Identity
from oneround.live.coordinator import Inbox, distill, global_model, take_metrics, write_pages
from oneround.study import Study

Take = Callable[[Mapping[str, object], dict[str, bytes]], None]
"""Takes facts and files of one client; raises :class:`OneRoundError` when it refuses them."""


def files_of(reply: FLModel) -> dict[str, bytes]:
    """The files in a message from anyone, by name; what is none is passed over."""
    params = reply.params if isinstance(reply.params, dict) else {}
    arrays = {k: v for k, v in params.items() if isinstance(k, str) and isinstance(v, np.ndarray)}
    return {name: array.tobytes() for name, array in arrays.items() if array.dtype == np.uint8}


class OneRound(ModelController):  # type: ignore[misc]
    """One round. The arguments are what FLARE writes into the job, for the server only.

    Args:
        study: the study file; k of n, deadline and keys are those of its ``hand_in``.
        inbox: folder for the submissions.
        out: RUN folder.
        identity: opens encrypted submissions; its passphrase is in ``ONEROUND_PASSPHRASE``.
        method, preset, seed: as for ``oneround distill``.
        options: as ``--set`` of ``oneround distill``, separated by spaces.
        hours: how long a client may take for an answer.
    """

    def __init__(
        self,
        study: str,
        inbox: str,
        out: str,
        identity: str = "",
        method: str = "kang2025",
        preset: str = "quick",
        options: str = "",
        seed: int = 0,
        hours: float = 24.0,
    ) -> None:
        # The only model that is kept is the one in ``out``; k of n is counted by OneRound.
        super().__init__(persistor_id="", ignore_result_error=True)
        self.study, self.inbox, self.out, self.identity = study, inbox, out, identity
        self.method, self.preset, self.options, self.seed = method, preset, options, seed
        self.hours = hours

    def run(self) -> None:
        """From sites that are online to one global model, and what they say of it."""
        study, out = Study.read(self.study), Path(self.out)
        secret = os.environ.get("ONEROUND_PASSPHRASE")
        inbox = Inbox(
            Path(self.inbox), study, Identity(self.identity, secret) if self.identity else None
        )
        method = methods.get(self.method)
        options = method.resolve(self.preset, self.options.split())

        def submission(facts: Mapping[str, object], files: dict[str, bytes]) -> None:
            if facts.get("site") in inbox.sites:
                return  # from a run before, or by mail; that file stays
            if len(files) != 1:
                raise OneRoundError("that is no submission.")
            (content,) = files.values()
            self.info(f"{inbox.take(content)} has handed in: {len(content):,} bytes")

        def metrics(facts: Mapping[str, object], files: dict[str, bytes]) -> None:
            if facts.get("told") is not False:
                accuracy = take_metrics(out, study, files).global_model.accuracy
                self.info(f"{facts.get('site')} has evaluated: accuracy {accuracy:.3f}")

        deadline = study.hand_in.deadline
        seconds = min(deadline.timestamp() - time.time(), 3600 * self.hours) if deadline else None
        online = set(self.sample_clients())
        notes = self._ask("submission", study, {}, submission, seconds)
        missing = [s for s in handed_in.expected_sites(study) if s not in online | inbox.sites]
        notes += [f"{site}: not online when the job started." for site in missing]
        distill(inbox, inbox.enough(notes), out, method=method, options=options, seed=self.seed)
        notes += [
            f"Evaluation: {n}" for n in self._ask("global", study, global_model(out), metrics)
        ]
        write_pages(out, notes)
        self.info(f"done: {out / 'report.html'}")

    def _ask(
        self,
        task: str,
        study: Study,
        files: Mapping[str, bytes],
        take: Take,
        seconds: float | None = None,
    ) -> list[str]:
        """One task for all clients that are online now; what went wrong, for the report."""
        silent, notes = set(self.sample_clients()), []

        def callback(reply: FLModel) -> bool:
            client = reply.meta["client_name"]  # set by FLARE, which knows its certificate
            silent.discard(client)
            try:
                if reply.meta.get("done") is not True:
                    raise OneRoundError("could not do it; the log of the site says why.")
                take(reply.meta, files_of(reply))
            except OneRoundError as error:
                notes.append(f"{client}: {error.reason}")
                self.warning(notes[-1])
                return False
            return True

        params = {name: np.frombuffer(data, np.uint8) for name, data in files.items()}
        message = FLModel(params=params, meta={"study": study.hash})
        timeout = max(1, int(3600 * self.hours if seconds is None else seconds))
        self.send_model(task, message, timeout=timeout, callback=callback)
        while self.get_num_standing_tasks():
            if self.abort_signal.triggered:
                raise OneRoundError("the job was stopped; what has arrived stays in the inbox.")
            time.sleep(0.5)
        return notes + [
            f"{client}: failed, or did not answer in time." for client in sorted(silent)
        ]
