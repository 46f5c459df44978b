"""Two processes on the CPU against one, with the real command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from oneround.cli import main
from oneround.errors import OneRoundError
from oneround.files import read_json
from oneround.model_file import load_model
from oneround.models import batch_norm
from oneround.models.batch_norm import SynchronizedBatchNorm, synchronize_batch_norms
from oneround.runs.stage import Stage
from oneround.site.training import train_client
from tests.tiny import IMAGE, STUDY, equal, images, network, seeded

SMALL = [
    "inversion.images=16",
    "inversion.batch_size=4",
    "inversion.steps=3",
    "distillation.steps=6",
    "distillation.batch_size=8",
    "distillation.batches=3",
    "distillation.learning_rate=0.01",
    "distillation.noise_pool=16",
    "distillation.checkpoint_every=2",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study and two submissions."""
    path = tmp_path_factory.mktemp("processes")
    STUDY.write(path / "study.toml")
    for k in range(2):
        site = f"site-{k}"
        train_client(STUDY, site, images(48, seed=k)).write(path / f"{site}.oneround", STUDY)
    return path


def command(folder: Path, out: str, *options: str, changes: Sequence[str] = ()) -> list[str]:
    settings = [part for change in [*SMALL, *changes] for part in ("--set", change)]
    files = [str(folder / name) for name in ("study.toml", "site-0.oneround", "site-1.oneround")]
    base = [sys.executable, "-m", "oneround", "distill", *files, "--out", str(folder / out)]
    base += ["--method", "kang2025", "--device", "cpu", "--threads", "1"]
    return [*base, *options, *settings]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    )


def finish(arguments: list[str], code: int = 0) -> str:
    with start(arguments) as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    return output


def alone(arguments: list[str]) -> None:
    """Without a second process there is no need for another than this one."""
    assert main(arguments[3:]) == 0


def outputs(run: Path) -> torch.Tensor:
    x = IMAGE.normalize(images(24, seed=9).pixels())
    with torch.no_grad():
        found: torch.Tensor = load_model(run / "global.safetensors").network.eval()(x).softmax(1)
    return found


def test_two_processes_do_what_one_does(folder: Path) -> None:
    """Noise-adapted teachers and the student see the statistics of the whole batch."""
    noise = ["distillation.mix=noise"]
    alone(command(folder, "one", changes=noise))
    finish(command(folder, "two", "--devices", "2", changes=noise))
    for shard in sorted((folder / "one" / "bank").glob("*.safetensors")):
        assert shard.read_bytes() == (folder / "two" / "bank" / shard.name).read_bytes()
    assert torch.allclose(outputs(folder / "two"), outputs(folder / "one"), atol=1e-3)
    one, two = (read_json(folder / run / "results.json")["cost"] for run in ("one", "two"))
    for phase in ("synthesis", "distillation"):
        assert two[phase]["flops"] == pytest.approx(one[phase]["flops"], rel=0.01)


def test_a_killed_process_is_told_and_the_run_goes_on(folder: Path) -> None:
    changes = ["distillation.steps=3000", "distillation.batches=0"]
    arguments = command(folder, "killed", "--devices", "2", changes=changes)
    checkpoint = folder / "killed" / "distillation" / "checkpoint.pt"
    with start(arguments) as process:
        limit = time.monotonic() + 180
        while not checkpoint.exists() and time.monotonic() < limit:
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.exists():
            process.kill()
            pytest.skip("needs Linux to find the other process")
        os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    ours = "connection to another process of this run was lost"
    fabrics = "terminated with code -9"  # it may stop this process before we can say anything
    assert (ours in output and "--resume" in output) or fabrics in output
    saved = torch.load(checkpoint, weights_only=True)
    assert 0 < saved["step"] < 3000

    with start([*arguments, "--resume"]) as process:
        while process.poll() is None and time.monotonic() < limit + 60:
            if torch.load(checkpoint, weights_only=True)["step"] > saved["step"]:
                break
            time.sleep(0.2)
        process.kill()
    assert torch.load(checkpoint, weights_only=True)["step"] > saved["step"]


class TwoProcesses:
    """A stand-in for Fabric."""

    world_size, global_rank = 2, 1


def test_each_process_has_its_part_of_a_batch() -> None:
    stage = Stage("distillation")
    batch = torch.arange(6)
    assert torch.equal(stage.mine(batch), batch)
    stage.fabric = TwoProcesses()  # type: ignore[assignment]
    assert stage.mine(batch).tolist() == [3, 4, 5]
    assert not stage.leads
    with pytest.raises(OneRoundError, match=r"batch of 5 .* 2 processes") as caught:
        stage.mine(batch[:5])
    assert "batch_size" in caught.value.remedy


def test_synchronized_batch_norm_of_one_process_is_torchs() -> None:
    one, other = network(1).train(), network(1).train()
    synchronize_batch_norms(one)
    kinds = {type(module) for module in one.modules() if isinstance(module, nn.BatchNorm2d)}
    assert not kinds
    assert any(isinstance(module, SynchronizedBatchNorm) for module in one.modules())
    x = torch.randn(6, *IMAGE.shape, generator=seeded())
    assert torch.equal(one(x), other(x))
    assert equal(one, other)


def test_synchronized_batch_norm_of_short_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under mixed precision, with two processes that have the same batch."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(batch_norm._SumOverProcesses, "apply", lambda sums: 2 * sums)
    x = (5 + torch.randn(6, 3, 4, 4, generator=seeded())).bfloat16()
    norm, reference = SynchronizedBatchNorm(3), nn.BatchNorm2d(3)
    normal = norm(x)
    assert normal.dtype == torch.bfloat16
    assert torch.allclose(normal.float(), reference(torch.cat([x, x]).float())[:6], atol=0.02)
    assert norm.running_mean is not None
    assert torch.allclose(norm.running_mean, reference.running_mean, atol=1e-3)
    assert torch.allclose(norm.running_var, reference.running_var, atol=1e-3)


@pytest.mark.parametrize("method", ["fedisca"])
def test_other_methods_share_the_learning(folder: Path, method: str) -> None:
    sets = ["epochs=2", "inversion.images=8", "inversion.steps=3", "distillation.start=scratch"]
    settings = [part for change in sets for part in ("--set", change)]
    for run, devices in ((alone, "1"), (finish, "2")):
        arguments = command(folder, method + devices, "--devices", devices, "--method", method)
        run([*arguments[: arguments.index("--set")], *settings])
    one, two = outputs(folder / f"{method}1"), outputs(folder / f"{method}2")
    assert torch.allclose(two, one, atol=1e-3)
