"""A site in a live federation: what it does when it is asked, with the images that stay there.

The site itself says who it is and where its images are; nothing that the coordinator sends can
change that. It trains only for the study that it has itself.

What goes wrong is logged at the site. The coordinator learns that it went wrong and no more: an
error may quote names of files.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from pydantic import Field

from oneround import signing
from oneround.data import Splits, read_splits
from oneround.errors import OneRoundError
from oneround.federation import LogProgress
from oneround.files import write_atomic
from oneround.model_file import CONFIG, WEIGHTS
from oneround.schema import Name, Strict, now
from oneround.site.evaluation import chosen_split, evaluate_at_site, write_evaluation
from oneround.site.make_submission import make_submission
from oneround.study import Study
from oneround.submission import check_submission, seal_submission

log = logging.getLogger("oneround.federation")

METRICS = "metrics.json"
"""Name of the file with the metrics of a site."""

LOG = "federation.log"
"""File in the folder of the site alone, with the reasons of what went wrong."""

Fact = str | int | float | bool
"""A short answer in a message."""

Answer = tuple[dict[str, Fact], dict[str, bytes]]
"""Short answers, and files by name."""


class Site(Strict):
    """The settings of a site, which it makes itself.

    Attributes:
        site: Name of the site.
        study: Study file.
        data: Images of the site, as for ``oneround train --data``.
        work: Folder of the site alone, for its submission and what belongs to that.
        signed_by: The coordinator's ``.pub`` file; if given, the study must be signed with it.
        key: The site's ``.key`` file; its passphrase is in ``ONEROUND_PASSPHRASE``.
        evaluate: Whether the site reports metrics of the global model.
        device: Device to train on: cpu, gpu or auto.
        threads: Number of CPU threads; 0: the default of PyTorch.
    """

    site: Name
    study: Path
    data: str
    work: Path
    signed_by: Path | None = None
    key: Path | None = None
    evaluate: bool = True
    device: str = "auto"
    threads: int = Field(default=0, ge=0)

    def read_study(self) -> Study:
        """The study, in which the site must be.

        Raises:
            OneRoundError: it cannot be read, is not signed, or does not know the site.
        """
        study = Study.read(self.study, signed_by=self.signed_by)
        study.require_site(self.site, self.study)
        return study

    def agreed(self, asked: str) -> Study:
        """The study, which must be the one with the hash that is asked for.

        Raises:
            OneRoundError: as for :meth:`read_study`, or it is another one.
        """
        study = self.read_study()
        if study.hash != asked:
            raise OneRoundError(
                f"the coordinator runs another study ({asked[:12]}…, here {study.hash[:12]}…).",
                file=self.study,
                remedy="Ask the coordinator for the study file, and read what has changed.",
            )
        return study

    def images(self, study: Study) -> Splits:
        """The images of this site."""
        splits = read_splits(self.data, image=study.image, classes=study.classes, site=self.site)
        for skipped in splits.skipped:
            log.warning("look: %s", skipped)
        return splits

    @property
    def submission(self) -> Path:
        """File with the site's submission."""
        return self.work / f"{self.site}.oneround"

    @property
    def passphrase(self) -> str | None:
        """Passphrase of the key, if it has one."""
        locked = self.key is not None and signing.needs_passphrase(self.key)
        return os.environ.get("ONEROUND_PASSPHRASE") if locked else None


def answered(settings: Callable[[], Site], function: Callable[[Site], Answer]) -> Answer:
    """The answer of ``function``, with the fact ``done``; what goes wrong stays in the log.

    Args:
        settings: Function that makes the settings, which may be wrong.
        function: :func:`hello`, :func:`submission` or :func:`metrics`.
    """
    name, site = "", None
    try:
        site = settings()
        name = site.site
        if site.threads:
            torch.set_num_threads(site.threads)
        facts, files = function(site)
    except Exception as error:
        log.error("%s", error, exc_info=not isinstance(error, OneRoundError))
        if site is not None:
            _write_down(error, site.work / LOG)
        return {"site": name, "done": False}, {}
    return {"site": name, "done": True, **facts}, files


def _write_down(error: Exception, path: Path) -> None:
    """Keep the reason at the site, also when the window of its node is closed."""
    lines = [str(error)] if isinstance(error, OneRoundError) else traceback.format_exception(error)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{now().isoformat()} {''.join(lines).rstrip()}\n")
    except OSError as wrong:
        log.error("%s cannot be written: %s", path, wrong)


def hello(site: Site) -> Answer:
    """Answer with the hash of the study that the site has."""
    return {"study": site.read_study().hash}, {}


def submission(site: Site, asked: str) -> Answer:
    """Train, and answer with the submission: signed, and encrypted if the study asks for that.

    A submission to this study that is there already is submitted again; an interrupted training
    continues. To train again, the site deletes the file.

    Args:
        site: Settings of the site.
        asked: Hash of the study that the coordinator asks for.

    Raises:
        OneRoundError: another study, no images, or no key.
    """
    study, file = site.agreed(asked), site.submission
    if any(problem.fatal for problem in check_submission(file, _without_keys(study))):
        _train(site, study)
    else:
        log.info("%s was made before and is submitted again", file)
    leaves = seal_submission(file, study, key=site.key, passphrase=site.passphrase)
    log.info("%s leaves: weights and a manifest, no image", leaves)
    return {}, {leaves.name: leaves.read_bytes()}


def _train(site: Site, study: Study) -> None:
    splits = site.images(study)
    if not len(splits.train):
        raise OneRoundError("there is no training image.", file=site.data, remedy="Put some there.")
    callbacks = [LogProgress()]
    made = make_submission(
        study, site.site, splits, site.submission, device=site.device, callbacks=callbacks
    )
    log.info("%s is written; look at %s, which stays here", made.file, made.contact_sheet)


def metrics(site: Site, asked: str, model: Mapping[str, bytes]) -> Answer:
    """Measure the global model on the site's images, and answer with counts and metrics.

    Args:
        site: Settings of the site.
        asked: Hash of the study that the coordinator asks for.
        model: Content of ``global.safetensors`` and ``config.json``.

    Raises:
        OneRoundError: another study, a model that is none, or no images.
    """
    study = site.agreed(asked)
    if not site.evaluate:
        log.info("%s withholds its metrics (evaluate=false)", site.site)
        return {"told": False}, {}
    folder = site.work / "global"
    folder.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, CONFIG):
        write_atomic(folder / name, model[name])
    split, images = chosen_split(site.images(study), "auto", site.data)
    own = site.submission if site.submission.is_file() else None
    found = evaluate_at_site(folder / WEIGHTS, images, study, site.site, split=split, own=own)
    passphrase = site.passphrase
    written = write_evaluation(site.work / METRICS, found, key=site.key, passphrase=passphrase)
    log.info("%s leave: counts and metrics, no image", " and ".join(map(str, written)))
    return {}, {path.name: path.read_bytes() for path in written}


def _without_keys(study: Study) -> Study:
    """A submission is signed just before it leaves."""
    return study.model_copy(update={"submission": study.submission.model_copy(update={"keys": {}})})
