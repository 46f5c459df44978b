"""The coordinator in a live federation: what arrives, and what is made of it."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

from oneround.coordinator import aggregate
from oneround.coordinator.evaluations import keep_evaluations, read_evaluation
from oneround.coordinator.inbox import Status, examine, expected_sites, status_of, submissions_in
from oneround.coordinator.results import Results
from oneround.errors import OneRoundError
from oneround.federation.site import METRICS
from oneround.files import write_atomic
from oneround.methods import Method
from oneround.model_file import CONFIG, WEIGHTS
from oneround.report import write_model_card, write_report
from oneround.schema import Strict
from oneround.signing import Identity, is_encrypted, signature_path
from oneround.site.evaluation import SiteEvaluation
from oneround.study import Study
from oneround.submission import LIMIT_BYTES, encrypted_path, read_submission, read_submissions

log = logging.getLogger("oneround.federation")


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

    def _status(self) -> Status:
        paths = submissions_in(self.folder)
        return status_of(self.study, paths, identity=self.identity)

    def complete(self) -> bool:
        """Whether all sites that the study knows have handed in."""
        expected = expected_sites(self.study)
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
        plain = self.folder / f"{site}.oneround"
        file = encrypted_path(plain) if is_encrypted(content[:64]) else plain
        there = [path for path in (plain, encrypted_path(plain)) if path.exists()]
        if there and any(self._accepted(path) for path in there):
            raise OneRoundError(f"a file of another site is called {plain.name}.")
        write_atomic(file, content)
        for refused in set(there) - {file}:
            refused.unlink()  # or it would be looked at in place of this one
        self.sites.add(site)
        return site

    def _accepted(self, path: Path) -> bool:
        return examine(path, self.study, self.identity)[0].accepted

    def enough(self, notes: list[str]) -> list[Path]:
        """The accepted files.

        Raises:
            OneRoundError: there are fewer than k, or they do not go together.
        """
        found = self._status()
        if not found.enough:
            counts = f"{found.accepted} submission(s) of the {found.at_least} that are needed."
            raise OneRoundError(
                " ".join([counts, *notes, *map(str, found.together)]),
                file=self.folder,
                remedy="See to these sites, then start the same run again: it goes on from here.",
            )
        return [self.folder / file.file for file in found.files if file.accepted]


def distill(
    inbox: Inbox,
    files: list[Path],
    out: Path,
    *,
    method: Method | None = None,
    options: Strict | None = None,
    seed: int = 0,
    extends: Path | None = None,
) -> None:
    """The global model, as :func:`oneround.coordinator.aggregate.distill` makes it.

    An interrupted run in the folder ``out`` goes on.
    """
    shown: dict[str, int] = {}

    def progress(stage: str, done: int, total: int, note: str) -> None:
        tenth = 10 * done // max(1, total)
        if shown.get(stage) != tenth:
            shown[stage] = tenth
            log.info("%s: %s of %s", stage, done, total)

    log.info("distillation from %s submissions", len(files))
    aggregate.distill(
        inbox.study,
        read_submissions(files, inbox.study, identity=inbox.identity),
        out=out,
        method=method,
        options=options,
        seed=seed,
        extends=extends,
        resume=(out / "configuration.json").exists(),
        progress=progress,
    )


def global_model(run: Path) -> dict[str, bytes]:
    """The files that go to the sites."""
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
