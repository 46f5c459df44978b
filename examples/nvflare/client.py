"""A site: the script that FLARE's Client API runs at every hospital.

Who the site is, where its images and its key are: all of that is in a file of the hospital, whose
path is in ``ONEROUND_SITE``, and nothing in the job can change it. When something goes wrong, the
server learns that it did and no more; the reason is in ``oneround.log`` beside that file.
"""

from __future__ import annotations

import logging
import os
import tomllib
from functools import partial
from pathlib import Path

import nvflare.client as flare
from messages import SUBMISSION, facts_of, files_of, message
from nvflare.app_common.abstract.fl_model import FLModel

from oneround.federation import site
from oneround.federation.site import Answer, Site

HERE = Path(os.environ.get("ONEROUND_SITE", "site.toml")).absolute()


def settings(name: str) -> Site:
    """The settings of this site; with a folder in ``ONEROUND_SITE``, of a simulated hospital.

    Raises:
        OneRoundError: a key is missing, unknown or wrong.
    """
    if not HERE.is_dir():
        return Site.validate_options(tomllib.loads(HERE.read_text("utf-8")), str(HERE))
    folder, key = HERE / name, HERE / name / f"{name}.key"
    given = {"site": name, "study": str(HERE / "study.toml"), "device": "cpu"}
    given |= {"data": str(folder / "images"), "work": str(folder)}
    return Site.validate_options(given | ({"key": str(key)} if key.is_file() else {}), str(folder))


def keep_log(name: str) -> None:
    """Keep what OneRound says out of FLARE's logs: errors in them may be sent to the server."""
    log = logging.getLogger("oneround")
    log.setLevel(logging.INFO)
    log.propagate = False
    folder = HERE / name if HERE.is_dir() else HERE.parent
    handler = logging.FileHandler(folder / "oneround.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.handlers = [handler]


def answer(here: Site, task: str, question: FLModel) -> Answer:
    """What the site answers to a task.

    Args:
        here: Settings of the site.
        task: ``submission`` or ``global``.
        question: Message with the hash of the study, and the files of the global model.
    """
    asked = str(facts_of(question).get("study"))
    if task == SUBMISSION:
        return site.submission(here, asked)
    return site.metrics(here, asked, files_of(question))


def main() -> None:
    """Answer, until the job is over."""
    flare.init()
    name = flare.get_site_name()
    keep_log(name)
    while flare.is_running():
        question = flare.receive()
        function = partial(answer, task=flare.get_task_name(), question=question)
        facts, files = site.answered(partial(settings, name), function)
        flare.send(message(facts, files))


if __name__ == "__main__":
    main()
