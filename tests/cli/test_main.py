from __future__ import annotations

import io
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from oneround import cli
from oneround.cli import command_of, main, study, train
from tests.cli.conftest import Call, Workplace

COMMANDS = [
    *[["study", name] for name in ("init", "keys", "sign", "check")],
    *[["keys", name] for name in ("new", "show")],
    *[["tokens", name] for name in ("new", "list", "revoke")],
    *[[name] for name in cli.COMMANDS if name not in ("study", "keys", "tokens")],
]


def test_all_commands_are_there() -> None:
    names = {command[0] for command in COMMANDS}
    assert names == {
        "study", "keys", "tokens", "train", "inspect", "seal", "submit", "collect", "status",
        "serve", "aggregate", "evaluate", "predict", "simulate", "bench", "report", "demo",
        "doctor",
    }  # fmt: skip


def test_what_takes_seconds_to_import_waits_until_it_is_needed() -> None:
    code = "import sys, oneround.cli; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {
        "torch",
        "numpy",
        "lightning_fabric",
        "monai",
        "torchmetrics",
        "torch._dynamo",
        "scipy",
        "distributed",
    }
    assert not heavy & set(shown.stdout.split())


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_help_of_a_command_is_that_of_its_module(name: str) -> None:
    help = command_of(name).help
    assert help is not None
    assert " ".join(help.split("\n\n")[0].split()) == cli.COMMANDS[name]


LIGHT = {
    "--help": ["--help"],
    "--version": ["--version"],
    "study init": ["study", "init", "new.toml", "--classes", "a,b", "--site", "north"],
    "study keys": ["study", "keys", "study.toml", "--key", "north=north.pub"],
    "study sign": ["study", "sign", "study.toml", "--key", "north.key"],
    "study check": ["study", "check", "study.toml"],
    "keys new": ["keys", "new", "other"],
    "keys show": ["keys", "show", "north.pub"],
    "tokens new": ["tokens", "new", "north", "--inbox", "."],
    "tokens list": ["tokens", "list", "--inbox", "."],
    "collect": ["collect", ".", "--out", "inbox"],
}
SLOW = {"torch", "numpy", "monai", "matplotlib", "lightning_fabric", "torchmetrics", "safetensors"}


@pytest.mark.parametrize("command", LIGHT)
def test_what_needs_no_network_loads_no_torch(call: Call, tmp_path: Path, command: str) -> None:
    assert call("keys", "new", tmp_path / "north").code == 0
    study = tmp_path / "study.toml"
    assert call("study", "init", study, "--classes", "a,b", "--site", "north").code == 0
    code = (
        "import sys; from oneround.cli import main; code = main(sys.argv[1:]); "
        "print(*sys.modules, file=sys.stderr); sys.exit(code)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, *LIGHT[command]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert shown.returncode == 0, shown.stderr[:2000]
    assert "oneround.cli.console" in shown.stderr.split()
    assert not SLOW & set(shown.stderr.split())


def test_version(call: Call) -> None:
    assert call("--version").out == f"oneround {version('oneround')}\n"


def test_the_options_for_completion_are_there(call: Call) -> None:
    assert "--install-completion" in call("--help").out


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_an_example(call: Call, command: list[str]) -> None:
    outcome = call(*command, "--help")
    assert outcome.code == 0
    assert "Example" in outcome.out
    assert f"oneround {' '.join(command)}" in " ".join(outcome.out.split())


BAD = {
    "study check": ["study", "check", "missing.toml"],
    "study init": ["study", "init", "x.toml", "--data", "missing.npz"],
    "train": ["train", "missing.toml", "--data", "x", "--site", "a", "--out", "x"],
    "aggregate": ["aggregate", "missing.toml", "x.oneround", "--out", "run"],
    "evaluate": ["evaluate", "missing.safetensors", "--data", "x"],
    "predict": ["predict", "missing.safetensors", "x.png"],
    "simulate": ["simulate", "--data", "missing.csv", "--out", "run"],
    "bench": ["bench", "missing.toml", "--out", "x"],
    "report": ["report", "missing-run"],
    "inspect": ["inspect", "x.oneround", "--study", "missing.toml"],
    "serve": ["serve", "missing.toml", "run", "--inbox", "missing"],
    "tokens new": ["tokens", "new", "north", "--inbox", "missing"],
}


@pytest.mark.parametrize("command", BAD)
def test_errors_name_file_reason_and_remedy(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call(*BAD[command])
    assert outcome.code == 1
    first, reason, remedy = outcome.err.splitlines()
    assert first.startswith("error in ")
    assert "missing" in first
    assert len(reason.strip()) > 10
    assert remedy.strip().startswith("Remedy: ")
    assert outcome.out == ""
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_wrong_usage(call: Call) -> None:
    outcome = call("train", "--colour")
    assert outcome.code == 2
    assert "--colour" in outcome.err


def test_paths_are_printed_as_they_are(call: Call, tmp_path: Path) -> None:
    """Brackets are not markup, and long paths are not broken."""
    path = tmp_path / "[" / "bold][red]" / ("x" * 100 + ".toml")
    assert str(path) in call("study", "check", path).err
    path.parent.mkdir(parents=True)
    outcome = call("study", "init", path, "--classes", "[/bold],[red]", "--name", "tiny")
    assert outcome.code == 0
    assert f"{path}: study tiny" in outcome.out
    assert "[/bold], [red]" in outcome.out


def test_ctrl_c_says_how_to_go_on(
    call: Call, workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "make_submission", interrupt)
    outcome = call(
        "train", workplace.study, "--data", workplace.data, "--site", "a", "--out", tmp_path / "a"
    )
    assert outcome.code == 130
    assert "run the same command again" in outcome.err


def test_other_errors_of_the_system(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", "secret")

    monkeypatch.setattr(study.Study, "read", fail)
    outcome = call("study", "check", tmp_path)
    assert outcome.code == 1
    assert outcome.err.splitlines() == [
        "error in secret",
        "  Permission denied.",
        "  Remedy: Check the path, its permissions and the free space.",
    ]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_letters_that_the_terminal_does_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    path = tmp_path / "日本-\udcff.toml"  # a byte that is not UTF-8
    assert main(["study", "init", str(path), "--classes", "größe,日本", "--name", "x"]) == 0
    assert main(["study", "init", str(path), "--classes", "a,b"]) == 1
    shown = {}
    for name, stream in streams.items():
        stream.flush()
        assert isinstance(stream.buffer, io.BytesIO)
        shown[name] = stream.buffer.getvalue().decode(encoding)
    assert "study x, valid" in shown["stdout"]
    assert ("日本" if encoding == "utf-8" else r"\u65e5\u672c") in shown["stdout"]
    assert r"\udcff" in shown["stderr"]
    assert "--force" in shown["stderr"]
