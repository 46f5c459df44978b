"""The coordinator in a live federation: what arrives, and what is made of it."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from oneround.coordinator.aggregate import aggregate
from oneround.coordinator.evaluations import keep_evaluations, read_evaluation
from oneround.coordinator.inbox import Inbox, Received
from oneround.coordinator.results import Results
from oneround.errors import OneRoundError
from oneround.federation import LogProgress
from oneround.federation.site import METRICS
from oneround.files import hidden_part
from oneround.methods import Method
from oneround.model_file import CONFIG, WEIGHTS
from oneround.report import write_model_card, write_report
from oneround.schema import Strict
from oneround.signing import Identity, signature_path
from oneround.site.evaluation import SiteEvaluation
from oneround.study import Study
from oneround.submission import read_submissions

log = logging.getLogger("oneround.federation")


def open_inbox(
    folder: str | os.PathLike[str], study: Study, identity: str | os.PathLike[str] | None = None
) -> Inbox:
    """The folder of submissions, made if it is not there.

    Args:
        folder: Folder, which may hold files that came by another carrier.
        study: The agreement between the sites.
        identity: The coordinator's ``.identity`` file; its passphrase is in
            ``ONEROUND_PASSPHRASE``.
    """
    secret = os.environ.get("ONEROUND_PASSPHRASE")
    inbox = Inbox(Path(folder), study, Identity(identity, secret) if identity else None)
    inbox.folder.mkdir(parents=True, exist_ok=True)
    return inbox


def take_submission(inbox: Inbox, files: Mapping[str, bytes]) -> Received:
    """Put the file that a node sent into the inbox.

    Args:
        inbox: Folder of submissions.
        files: Files in the answer of the node, by name; the name is not used.

    Raises:
        OneRoundError: it is not one file, or is refused.
    """
    if len(files) != 1:
        raise OneRoundError("sent no submission.")
    (content,) = files.values()
    if len(content) > inbox.limit:
        raise OneRoundError(f"sent a file that is refused: it is larger than {inbox.limit} bytes.")
    try:
        with hidden_part(inbox.folder / "node", private=True) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            file.close()
            found = inbox.take(Path(file.name))
    except OSError as error:
        raise OneRoundError(f"sent a file that cannot be kept: {error.strerror}.") from error
    if found.fatal:
        reasons = " ".join(f"{problem.what} [{problem.code}]." for problem in found.fatal)
        raise OneRoundError(f"sent a file that is refused: {reasons}")
    return found


def aggregate_inbox(
    inbox: Inbox,
    out: Path,
    *,
    notes: Sequence[str] = (),
    method: Method | None = None,
    options: Strict | None = None,
    seed: int = 0,
    extends: Path | None = None,
) -> None:
    """The global model of all accepted files; an interrupted run in ``out`` continues.

    Args:
        inbox: Folder of submissions.
        out: RUN folder.
        notes: What went wrong on the way, for the error.
        method, options, seed, extends: As for :func:`oneround.coordinator.aggregate.aggregate`.

    Raises:
        OneRoundError: fewer than k files are accepted, or no global model can be made of them.
    """
    files = inbox.enough(notes)
    log.info("aggregation of %s submissions", len(files))
    aggregate(
        inbox.study,
        read_submissions(files, inbox.study, identity=inbox.identity),
        out=out,
        method=method,
        options=options,
        seed=seed,
        extends=extends,
        resume=(out / "configuration.json").exists(),
        callbacks=[LogProgress()],
    )


def global_model(run: Path) -> dict[str, bytes]:
    """Files of the global model that go to the sites, by name."""
    return {name: (run / name).read_bytes() for name in (WEIGHTS, CONFIG)}


def take_metrics(run: Path, study: Study, files: Mapping[str, bytes]) -> SiteEvaluation:
    """Keep the metrics that a site sent.

    Raises:
        OneRoundError: they are none, of another study or model, or not signed by the site.
    """
    with tempfile.TemporaryDirectory(dir=run, prefix=".") as folder:
        path = Path(folder, METRICS)
        for part in (path, signature_path(path)):
            if part.name in files:
                part.write_bytes(files[part.name])
        found = read_evaluation(path, study)
    keep_evaluations(run, [found])
    return found


def write_pages(run: Path, notes: list[str]) -> None:
    """Report and model card, with what went wrong on the way beside the notes of the method."""
    results = Results.read(run)
    results.model_copy(update={"notes": [*results.notes, *notes]}).write(run)
    write_report(run)
    write_model_card(run)
