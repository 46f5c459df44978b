from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from oneround.cli import main
from tests import tiny


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON, of a command that succeeded."""
        assert self.code == 0, self.err
        return json.loads(self.out)


Call = Callable[..., Outcome]


@pytest.fixture(scope="session")
def call() -> Call:
    """Run a command in this process."""

    def run(*arguments: object) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main([str(argument) for argument in arguments])
        return Outcome(code, out.getvalue(), err.getvalue())

    return run


@dataclass(frozen=True)
class Workplace:
    """What a study of two sites has made: data, study, submissions and a run."""

    data: Path
    study: Path
    submissions: list[Path]
    run: Path


@pytest.fixture(scope="session")
def workplace(call: Call, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """The whole way by commands: study init, train at two sites, distill."""
    root = tmp_path_factory.mktemp("workplace")
    for number, split in enumerate(("train", "val", "test")):
        tiny.write_folder(root / "images" / split, tiny.images(24, seed=number))
    study = root / "study.toml"
    outcome = call(
        "study", "init", study, "--data", root / "images", "--architecture", "resnet18:width=2",
        "--set", "training.epochs=2", "--set", "training.batch_size=8",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    submissions = [root / "north.oneround", root / "south.oneround"]
    for file in submissions:
        outcome = call(
            "train", study, "--data", root / "images", "--site", file.stem, "--out", file,
            "--device", "cpu",
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
    options = [part for option in tiny.HEADFIT for part in ("--set", option)]
    outcome = call(
        "aggregate", study, *submissions, "--out", root / "run", "--device", "cpu", *options
    )
    assert outcome.code == 0, outcome.err
    return Workplace(root / "images", study, submissions, root / "run")
