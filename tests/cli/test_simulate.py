from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oneround.errors import OneRoundError
from oneround.runs.run import Run
from tests import tiny
from tests.cli.conftest import Call

TRAINING = [
    "--architecture", "resnet18:width=2", "--local-epochs", "2", "--device", "cpu",
    "--threads", "1", "--set", "training.batch_size=8",
]  # fmt: skip
TINY = [*TRAINING, *[part for option in tiny.HEADFIT for part in ("--set", option)]]


def test_prints_json_and_writes_the_report(call: Call, tmp_path: Path) -> None:
    data = tiny.write_npz(tmp_path / "tiny.npz", tiny.splits())
    out = tmp_path / "run"
    outcome = call(
        "simulate", "--data", data, "--sites", 2, "--seed", 3, "--out", out, "--json", *TINY
    )
    content = outcome.json
    assert content["seeds"] == {"study": 3, "run": 3}
    assert content["models"]["global"]["images"] == 12
    assert [site["site"] for site in content["models"]["sites"]] == ["site-1", "site-2"]
    assert "Training images" in outcome.err
    assert (out / "report.html").stat().st_size > 10_000


def test_sites_of_a_csv_file(call: Call, tmp_path: Path) -> None:
    splits = ["train"] * 40 + ["test"] * 8
    data = tiny.write_csv(tmp_path, tiny.images(48), splits, ["north", "south"] * 24)
    outcome = call(
        "simulate", "--data", data, "--partition", "site", "--out", tmp_path / "run",
        "--method", "fedavg", *TINY[:10],
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    for text in ("Training images", "north", "south", "FedAvg", "global model", "report:"):
        assert text in outcome.out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--partition", "site"], "column `site`"),
        (["--sites", "1000"], "cannot be divided"),
        (["--size", "4"], "height"),
        (["--set", "training.epoch=1"], "training.epoch"),
        (["--set", "steps=1"], "steps"),
    ],
)
def test_what_is_not_possible(call: Call, tmp_path: Path, options: list[str], reason: str) -> None:
    data = tiny.write_npz(tmp_path / "tiny.npz", tiny.splits())
    outcome = call("simulate", "--data", data, "--out", tmp_path / "run", *options)
    assert outcome.code == 1
    assert reason in outcome.err
    assert "Remedy" in outcome.err
    assert not (tmp_path / "run").exists()


def test_one_class_alone(call: Call, tmp_path: Path) -> None:
    data = tiny.write_folder(tmp_path / "images", tiny.images(2, classes=("sick",)))
    outcome = call("simulate", "--data", data, "--out", tmp_path / "run")
    assert outcome.code == 1
    assert f"error in {data}\n  there is only one class, sick." in outcome.err


def test_killed_three_times_and_resumed_is_bit_equal(call: Call, tmp_path: Path) -> None:
    """SIGKILL in training, in synthesis and in distillation; nothing can be cleaned up then."""
    data = tiny.write_npz(tmp_path / "tiny.npz", tiny.splits())
    options = [*tiny.KANG2025, "inversion.steps=40", "distillation.steps=60"]
    longer = [part for option in options for part in ("--set", option)]
    command = ["simulate", "--data", str(data), "--sites", "2", *TRAINING, *longer]
    command += ["--method", "kang2025"]
    out = tmp_path / "killed"
    pieces = ("sites/site-1/checkpoint.pt", "bank/000.safetensors", "distillation/checkpoint.pt")
    for piece in pieces:
        kill_when(out, piece, [*command, "--out", str(out), "--resume"])
        assert not (out / "global.safetensors").exists(), "killed too late to be a test"
    assert call(*command, "--out", out, "--resume").code == 0
    assert call(*command, "--out", tmp_path / "straight").code == 0
    for name in ("global.safetensors", "gallery.safetensors", "curves.json", "config.json"):
        killed, straight = (tmp_path / f / name for f in ("killed", "straight"))
        assert killed.read_bytes() == straight.read_bytes(), name


def kill_when(out: Path, piece: str, arguments: list[str]) -> None:
    """Run a command in a process of its own, and kill it as soon as a file is there."""
    code = "import sys; from oneround.cli import main; sys.exit(main())"
    with subprocess.Popen([sys.executable, "-c", code, *arguments]) as process:
        for _ in range(12_000):
            if (out / piece).exists():
                break
            assert process.poll() is None, "ended early"
            time.sleep(0.005)
        with pytest.raises(OneRoundError, match="another process"), Run(out, {}):
            pass
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
