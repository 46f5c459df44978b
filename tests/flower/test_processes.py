"""The real thing on loopback: a SuperLink with TLS, SuperNodes that must prove who they are."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

import servers
from flower.federation import hospitals, node_config, run_config
from oneround.results import Results
from oneround.site_evaluation import kept_evaluations

APP = Path(__file__).parents[2] / "examples/flower"
QUIET = {  # as the guide says
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "OMP_NUM_THREADS": "1",
}


def program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def new_node_key(path: Path) -> Path:
    """A key pair as `ssh-keygen -t ecdsa` makes it."""
    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = path.with_suffix(".pub")
    public.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return public


class Processes:
    """What was started, each in a group of its own, with its output in a file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.groups: dict[str, subprocess.Popen[bytes]] = {}
        self.certificate = servers.self_signed(folder / "server.pem")

    def environment(self, name: str) -> dict[str, str]:
        home = self.folder / f"home-{name}"
        home.mkdir(exist_ok=True)
        return os.environ | QUIET | {"FLWR_HOME": str(home)}

    def start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as output:
            self.groups[name] = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                env=self.environment(name), cwd=self.folder,
            )  # fmt: skip

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text("utf-8", errors="replace")

    def kill(self, name: str) -> None:
        """Without warning, with all that it has started, as when the power fails."""
        os.killpg(self.groups[name].pid, signal.SIGKILL)
        self.groups.pop(name).wait()

    def superlink(self) -> None:
        pem = str(self.certificate)
        self.start(
            "superlink", program("flower-superlink"), "--ssl-ca-certfile", pem,
            "--ssl-certfile", pem, "--ssl-keyfile", pem, "--enable-supernode-auth",
            "--disable-runtime-dependency-installation", "--port", str(self.port),
        )  # fmt: skip
        wait_for(lambda: "Uvicorn running" in self.log("superlink"), 90)
        (Path(self.environment("coordinator")["FLWR_HOME"]) / "config.toml").write_text(
            '[superlink]\ndefault = "study"\n[superlink.study]\n'
            f'address = "127.0.0.1:{self.port}"\nroot-certificates = "{pem}"\n'
        )

    def flwr(self, *words: str, seconds: float) -> str:
        done = subprocess.run(
            [program("flwr"), *words], env=self.environment("coordinator"), timeout=seconds,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    def supernode(self, site: str, *, registered: bool = True) -> None:
        public = new_node_key(self.folder / f"node-{site}")
        if registered:
            self.flwr("supernode", "register", str(public), "study", "--name", site, seconds=90)
        config = node_config(self.folder, site)
        self.start(
            site, program("flower-supernode"), "--root-certificates", str(self.certificate),
            "--superlink", f"127.0.0.1:{self.port}", "--port", str(free_port()),
            "--auth-supernode-private-key", str(public.with_suffix("")),
            "--node-config", " ".join(f'{key}="{value}"' for key, value in config.items()),
        )  # fmt: skip


@contextmanager
def processes(folder: Path) -> Iterator[Processes]:
    started = Processes(folder)
    try:
        yield started
    finally:
        for name in list(started.groups):
            started.kill(name)


def wait_for(happened: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.2)


def test_federation(tmp_path: Path) -> None:
    """Three hospitals, one of which loses its power while it trains, and a stranger."""
    study = hospitals(tmp_path, training={"west": 600})
    training = study.training.model_copy(update={"epochs": 60})  # west takes a minute
    study.model_copy(update={"training": training}).write(tmp_path / "study.toml")
    with processes(tmp_path) as running:
        running.superlink()
        for site in ("north", "south", "west"):
            running.supernode(site)
        running.supernode("stranger", registered=False)
        given = run_config(tmp_path, **{"poll-seconds": 1.0})
        options = " ".join(f"{k}={v!r}" for k, v in given.items())
        words = ("run", str(APP), "study", "--run-config", options, "--format", "json")
        started = json.loads(running.flwr(*words, seconds=90))
        wait_for(lambda: (tmp_path / "west/west.training/checkpoint.pt").exists(), 180)
        running.kill("west")
        wait_for(lambda: "Finished task" in running.log("superlink"), 300)
        said = running.flwr("log", "--show", str(started["run-id"]), "study", seconds=60)
    assert "Failed to activate SuperNode" in running.log("stranger")
    (line,) = (line for line in said.splitlines() if "was lost" in line)
    assert "west (node" in line
    results = Results.read(tmp_path / "run")
    assert [record.site for record in results.submissions] == ["north", "south"]
    assert any("west (node" in note and "was lost" in note for note in results.notes)
    assert "was lost" in (tmp_path / "run/report.html").read_text("utf-8")
    assert [e.site for e in kept_evaluations(tmp_path / "run")] == ["north", "south"]
    assert "--token" not in (tmp_path / "run/results.json").read_text("utf-8"), "Flower's secret"
    assert not list((tmp_path / "home-coordinator").rglob("site-packages")), "nothing installed"
