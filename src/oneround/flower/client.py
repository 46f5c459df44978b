"""The ClientApp: what a site does when the coordinator asks, with the images that stay there.

The site says in ``--node-config`` of its SuperNode who it is and where its images are; nothing
that the coordinator sends can change that. It trains only for the study that it has itself.

What goes wrong is logged at the site. The coordinator is told that it went wrong and no more: an
error may quote names of files, and Flower sends the text of an exception to the server.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from lightning_fabric import Fabric
from pydantic import Field

from oneround import keys
from oneround.data import Splits, read_splits
from oneround.errors import OneRoundError
from oneround.files import write_atomic
from oneround.flower import show_log
from oneround.flower.messages import Fact, content, facts_of, files_of
from oneround.model_file import CONFIG, WEIGHTS
from oneround.site_evaluation import chosen_split, evaluate_at_site, write_evaluation
from oneround.site_training import make_submission
from oneround.study import Name, Strict, Study
from oneround.submission import check_submission, seal_submission

log = logging.getLogger("oneround.flower")

app = ClientApp()

METRICS = "metrics.json"


class Site(Strict):
    """The site's own settings, ``--node-config``, where they are written with ``-`` for ``_``.

    Attributes:
        site: its name.
        study: the study file.
        data: its images, as for ``oneround train --data``.
        work: a folder of its own, for the submission and what belongs to it.
        signed_by: the coordinator's ``.pub`` file; then the study must be signed.
        key: the site's ``.key`` file; its passphrase is in ``ONEROUND_PASSPHRASE``.
        evaluate: whether metrics of the global model may be told.
        device: cpu, gpu, or auto.
        threads: how many; 0: as many as torch likes.
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

    @classmethod
    def of(cls, context: Context) -> Site:
        """The settings of this node; in a simulation, those of a hospital in its folder.

        Raises:
            OneRoundError: a key is missing, unknown or wrong.
        """
        given: dict[str, Any] = {
            key.replace("-", "_"): value for key, value in context.node_config.items()
        }
        if "partition_id" in given:  # set by Flower's simulation, which sites never run
            given = _simulated(context.run_config, int(given["partition_id"]))
        return cls.validate_options(given, "--node-config")

    def agreed(self, asked: str) -> Study:
        """The study, which must be the one that is asked for.

        Raises:
            OneRoundError: it cannot be read, is not signed, or is another one.
        """
        study = Study.read(self.study, signed_by=self.signed_by)
        study.require_site(self.site, self.study)
        if study.hash != asked:
            raise OneRoundError(
                f"the coordinator runs another study ({asked[:12]}…, here {study.hash[:12]}…).",
                file=self.study,
                remedy="Ask the coordinator for the study file, and read what has changed.",
            )
        return study

    def images(self, study: Study) -> Splits:
        """The images of this site."""
        return read_splits(self.data, image=study.image, classes=study.classes)

    @property
    def submission(self) -> Path:
        """Where the submission is kept."""
        return self.work / f"{self.site}.oneround"

    @property
    def passphrase(self) -> str | None:
        """Of the key, if it has one."""
        locked = self.key is not None and keys.needs_passphrase(self.key)
        return os.environ.get("ONEROUND_PASSPHRASE") if locked else None


def _simulated(run: dict[str, Any], partition: int) -> dict[str, Any]:
    """A simulation plays hospitals whose folders lie side by side, in the order of names."""
    folders = sorted(path for path in Path(str(run["sites"])).iterdir() if path.is_dir())
    folder = folders[partition]
    key = folder / f"{folder.name}.key"
    return {
        "site": folder.name,
        "study": str(run["study"]),
        "data": str(folder / "images"),
        "work": str(folder),
        "device": "cpu",
        **({"key": str(key)} if key.is_file() else {}),
    }


Answer = tuple[dict[str, Fact], dict[str, bytes]]


def _answered(
    function: Callable[[Message, Site], Answer], message: Message, context: Context
) -> Message:
    """The reply; what goes wrong stays in the log of the site."""
    show_log()
    try:
        site = Site.of(context)
        if site.threads:
            torch.set_num_threads(site.threads)
        facts, files = function(message, site)
        reply = content({"site": site.site, "done": True, **facts}, files)
    except Exception as error:
        log.error("%s", error, exc_info=not isinstance(error, OneRoundError))
        name = str(context.node_config.get("site", ""))
        reply = content({"site": name, "done": False})
    return Message(reply, reply_to=message)


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Say who is there, and for which study."""
    return _answered(_name, message, context)


def _name(message: Message, site: Site) -> Answer:
    return {"study": Study.read(site.study, signed_by=site.signed_by).hash}, {}


@app.train("submission")
def train(message: Message, context: Context) -> Message:
    """Train, and answer with the submission: signed, and encrypted if the study asks for that.

    A submission to this study that is there already is handed in again; an interrupted training
    goes on. To train anew, the site deletes the file.
    """
    return _answered(_submission, message, context)


def _submission(message: Message, site: Site) -> Answer:
    study, file = site.agreed(str(facts_of(message).get("study"))), site.submission
    if any(problem.fatal for problem in check_submission(file, _unsigned(study))):
        fabric = Fabric(accelerator=site.device, devices=1)
        splits = site.images(study)
        if not len(splits.train):
            raise OneRoundError(
                "there is no training image.", file=site.data, remedy="Put images there."
            )

        def progress(stage: str, done: int, total: int, note: str) -> None:
            log.info("%s: %s of %s, %s", stage, done, total, note)

        made = make_submission(study, site.site, splits, file, fabric=fabric, progress=progress)
        log.info("%s is written; look at %s, which stays here", file, made.contact_sheet)
    else:
        log.info("%s was made before and is handed in again", file)
    leaves = seal_submission(file, study, key=site.key, passphrase=site.passphrase)
    log.info("%s leaves: weights and a manifest, no image", leaves)
    return {}, {leaves.name: leaves.read_bytes()}


@app.evaluate("global")
def evaluate(message: Message, context: Context) -> Message:
    """Measure the global model on the site's images, and answer with counts and metrics."""
    return _answered(_metrics, message, context)


def _metrics(message: Message, site: Site) -> Answer:
    study = site.agreed(str(facts_of(message).get("study")))
    if not site.evaluate:
        log.info("%s tells no metrics (evaluate=false)", site.site)
        return {"told": False}, {}
    folder, files = site.work / "global", files_of(message)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, CONFIG):
        write_atomic(folder / name, files[name])
    split, images = chosen_split(site.images(study), "auto", site.data)
    own = site.submission if site.submission.is_file() else None
    found = evaluate_at_site(folder / WEIGHTS, images, study, site.site, split=split, own=own)
    passphrase = site.passphrase
    written = write_evaluation(site.work / METRICS, found, key=site.key, passphrase=passphrase)
    log.info("%s leaves: counts and metrics, no image", " and ".join(map(str, written)))
    return {}, {path.name: path.read_bytes() for path in written}


def _unsigned(study: Study) -> Study:
    """The study without keys: a submission is signed just before it leaves."""
    return study.model_copy(update={"hand_in": study.hand_in.model_copy(update={"keys": {}})})
