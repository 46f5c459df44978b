"""From one global model to the next, as hospitals join late or withdraw.

*Joining late*: the image bank of the earlier run is kept, and gets images of the new client models
alone. The student continues, with all client models as teachers: from the earlier global model, or
from the client model of a late site that has what the others lack; the method says when.

*Withdrawal*: nothing of a site that has withdrawn may remain. Its client model shaped images in
the bank, every soft target and so every weight of the student. There is no proof that further
training forgets, so the only guarantee is a run from the start: from the remaining submissions,
reading nothing of the earlier run but its options. That is what happens here.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneround import methods
from oneround.coordinator.history import How, Ledger
from oneround.distillation.student import STARTS
from oneround.errors import OneRoundError
from oneround.files import read_json
from oneround.methods import Method
from oneround.model_file import WEIGHTS
from oneround.models.ensemble import Ensemble
from oneround.runs.run import Kept
from oneround.schema import Strict
from oneround.submission import Submission


@dataclass(frozen=True)
class Predecessor:
    """A finished run whose global model gets a successor.

    Attributes:
        path: RUN folder.
        ledger: history of all models up to its own.
        configuration: configuration of the run.
    """

    path: Path
    ledger: Ledger
    configuration: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Predecessor:
        """The run in a RUN folder.

        Raises:
            OneRoundError: there is no finished run in it.
        """
        if not (path / "ledger.json").is_file() or not (path / WEIGHTS).is_file():
            raise OneRoundError(
                "there is no finished run here.",
                file=path,
                remedy="Give the RUN folder of `oneround aggregate`; finish it with --resume.",
            )
        return cls(path, Ledger.read(path), read_json(path / "configuration.json"))

    @property
    def method(self) -> Method:
        """The method of that run."""
        name = self.configuration["method"]
        return methods.get(methods.RENAMED.get(name, name))

    def options(self, changes: Sequence[str] | Mapping[str, Any] = ()) -> Strict:
        """The options of the first run in the history, with ``changes`` on top."""
        content = self.configuration.get("full_options") or self.configuration["options"]
        return self.method.options_from(content, changes)


@dataclass(frozen=True)
class Succession:
    """How the next global model comes from the last one.

    Attributes:
        how: kind of run; see :class:`oneround.coordinator.history.Entry`.
        added: sites that the last model did not have.
        withdrawn: sites that have withdrawn since.
    """

    how: How
    added: tuple[str, ...]
    withdrawn: tuple[str, ...]


FULL = Succession("full", (), ())
"""There is no earlier model."""


def succession(
    before: Predecessor, submissions: Sequence[Submission], without: Sequence[str]
) -> Succession:
    """Which sites have joined or withdrawn since the last model; no other change is accepted.

    Args:
        before: earlier run.
        submissions: submissions of all sites that take part from now on, earlier ones included.
        without: sites that have withdrawn.

    Raises:
        OneRoundError: a site of the earlier run is neither given nor in ``without``, has
            submitted another file since, or nothing has changed.
    """
    old = before.ledger.entries[-1].submissions
    now = {s.manifest.site: s.sha256 for s in submissions}
    problems = [
        f"{site} has withdrawn, and a file of it is given" for site in without if site in now
    ]
    problems += [f"{site} has no part in that run" for site in without if site not in old]
    for site, sha256 in old.items():
        if site not in now and site not in without:
            problems.append(f"no file of {site} is given, and it has not withdrawn")
        elif now.get(site, sha256) != sha256:
            problems.append(f"{site} has submitted another file since")
    added = tuple(sorted(now.keys() - old.keys()))
    if not (problems or added or without):
        problems = ["the submissions are those of that run"]
    if problems:
        raise OneRoundError(
            "; ".join(problems) + ".",
            file=before.path,
            remedy="Give the files of all sites that take part from now on, and --without for "
            "those that withdrew; for anything else, make a run without --extend.",
        )
    how: How = "withdrawal" if without else "extension"
    return Succession(how, added, tuple(sorted(without)))


def extended_options(
    before: Predecessor,
    method: Method,
    options: Strict,
    change: Succession,
    ensemble: Ensemble,
) -> Strict:
    """The options of an extension: less work than a full run, from where the last one ended.

    Raises:
        OneRoundError: the method cannot be extended, or is not that of the earlier run.
    """
    if method.name != before.method.name:
        raise OneRoundError(
            f"this run was made by {before.method.name}, and {method.name} cannot continue it.",
            file=before.path,
            remedy="Leave out --method, or make a full run from all submissions, without --extend.",
        )
    if method.extend is None:
        raise OneRoundError(
            f"method {method.name} cannot be extended.",
            remedy="Make a full run from all submissions, without --extend.",
        )
    changed: Strict = method.extend(ensemble, options, before.path, change.added)
    return changed


def require_fresh_start(options: Strict) -> None:
    """Refuse options that would bring an earlier model into a run after a withdrawal.

    Raises:
        OneRoundError: the student starts from a model file.
    """
    start = getattr(getattr(options, "distillation", None), "start", "auto")
    if start not in STARTS:
        raise OneRoundError(
            f"the student would start from {start}, which the site may have been a part of.",
            remedy="Add --set distillation.start=auto.",
        )


def keep_bank(before: Predecessor, run: Path) -> None:
    """Copy the image bank of the earlier run, as the first shards of this one; safe to repeat."""
    for file in _shards(before.path):
        target = run / "bank" / file.name
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            part = target.with_name(f".{file.name}.part")
            shutil.copyfile(file, part)
            part.replace(target)


def kept(before: Predecessor, change: Succession) -> Kept:
    """What an extension takes over: how many shards of the bank, and which sites are new."""
    return Kept(sum(f.suffix == ".safetensors" for f in _shards(before.path)), change.added)


def _shards(run: Path) -> list[Path]:
    """Shards and their logs, the logs first: where a shard is, its log is there too."""
    files = [
        file for file in (run / "bank").glob("[0-9]*") if file.suffix in (".json", ".safetensors")
    ]
    return sorted(files, key=lambda file: (file.suffix, file.name))
