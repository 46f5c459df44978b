"""The walk-through of the documentation, line by line, with real processes on loopback."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from oneround.cli import main
from oneround.coordinator.evaluations import kept_evaluations
from oneround.coordinator.history import Ledger
from oneround.coordinator.results import Results
from tests import tiny

ROOT = Path(__file__).parents[3]
MAIL, LIVE = (ROOT / f"docs/tutorials/three-hospitals{end}.md" for end in ("", "-live"))


def blocks(page: Path, language: str, until: str = r"\Z") -> list[str]:
    text = re.split(until, page.read_text("utf-8"), maxsplit=1, flags=re.M)[0]
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def free_port() -> str:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def wait_for(happened: Callable[[], bool], seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.2)


class Terminals:
    """What runs until it is stopped, each with its output in a file."""

    def __init__(self) -> None:
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, words: list[str]) -> None:
        with Path(f"{name}.log").open("ab") as output:
            self._running[name] = subprocess.Popen(
                words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def log(self, name: str) -> str:
        return Path(f"{name}.log").read_text("utf-8", errors="replace")

    def wait(self, name: str, text: str, times: int = 1) -> None:
        """Until it has said so, so many times."""
        wait_for(lambda: self.log(name).count(text) >= times)

    def close(self, name: str, how: signal.Signals = signal.SIGKILL) -> None:
        """With all that it has started, as when the power fails."""
        os.killpg(self._running[name].pid, how)
        self._running.pop(name).wait()

    @classmethod
    @contextmanager
    def opened(cls) -> Iterator[Terminals]:
        terminals = cls()
        try:
            yield terminals
        finally:
            for name in list(terminals._running):
                terminals.close(name)


def prepare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images, keys and study of the other page: small, but for west, which trains for a while."""
    (drawing,) = blocks(MAIL, "python")
    for number in ("160", "120", "80", "40"):
        drawing = drawing.replace(number, "8")
    exec(compile(drawing, MAIL, "exec"), {"__name__": "__main__"})
    for file in sorted(Path("west/images/train").rglob("*.png")):
        for copy in range(12):
            shutil.copy(file, file.with_name(f"{copy}-{file.name}"))
    small = ["--architecture=resnet18:width=2", "--set=training.epochs=40"]
    for line in (line for b in blocks(MAIL, "console", "^## 3") for line in b.splitlines()):
        words = shlex.split(line)
        if words[0] == "oneround":
            assert main([*words[1:], *(small if "init" in words else [])]) == 0, line
        elif words[0] != "python":
            subprocess.run(words, check=True)


def lines(ports: dict[str, str]) -> Iterator[str]:
    """Each line, with ports that are free and options that are small."""
    quick, wait = f' options="{" ".join(tiny.HEADFIT)}"', "wait-minutes=0.0"
    for line in (line for block in blocks(LIVE, "console") for line in block.splitlines()):
        for old, new in ports.items():
            line = line.replace(old, new)
        line = line.replace(wait, wait + quick)
        yield line.replace("PATH/TO/CLONE", str(ROOT)).replace("$PWD", os.getcwd())


def register_nobody(terminals: Terminals, ports: dict[str, str]) -> None:
    """A node that the coordinator does not know."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", "stranger"], check=True)
    words = f"flower-supernode --root-certificates north/server.crt --port {free_port()}"
    words += f" --superlink 127.0.0.1:{ports['8400']} --auth-supernode-private-key stranger"
    terminals.start("stranger", words.split())


@pytest.mark.live
def test_three_hospitals_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    prepare(monkeypatch)
    ports = {port: free_port() for port in ("8400", "9501", "9502", "9503")}
    runs: list[int] = []
    nodes = 0
    with Terminals.opened() as terminals:
        for line in lines(ports):
            words = shlex.split(line)
            match words:
                case ["export", *variables]:
                    for variable in variables:
                        monkeypatch.setenv(*variable.split("=", 1))
                case ["flower-superlink", *_]:
                    terminals.start("superlink", words)
                    terminals.wait("superlink", "Uvicorn running")
                    register_nobody(terminals, ports)
                case ["flower-supernode", *_]:
                    (site,) = re.findall(r'site="(\w+)"', words[-1])
                    if site == "south" and runs:
                        terminals.close("south", signal.SIGINT)
                    terminals.start(site, words)
                    nodes += 1
                    terminals.wait("superlink", "Activated node", nodes)
                case ["flwr", "run", *_]:
                    terminals.start(f"run-{len(runs)}", words)
                    if not runs:
                        wait_for(Path("west/west.training/checkpoint.pt").exists)
                        terminals.close("west")
                    terminals.wait("superlink", "Finished task", len(runs) + 1)
                    terminals.close(f"run-{len(runs)}")
                    runs.append(len(runs))
                case _:
                    subprocess.run(line, shell=True, check=True)
        assert "Failed to activate SuperNode" in terminals.log("stranger")
        assert "not a private key (P-256, PEM)" in terminals.log("south")
        first, second, _ = (terminals.log(f"run-{number}") for number in runs)
    assert re.search(r"north \(node \d+\) has submitted: north", first)
    assert re.search(r"south \(node \d+\) could not do it", first)
    assert re.search(r"west \(node \d+\) was lost before it answered", first)
    assert "1 submission(s) of the 2 that are needed" in first
    assert re.search(r"north \(node \d+\) has submitted before", second)
    for run, sites in (("run", ["north", "south"]), ("run-2", ["north", "south", "west"])):
        results = Results.read(Path("coordinator", run))
        assert [record.site for record in results.submissions] == sites
        assert [e.site for e in kept_evaluations(Path("coordinator", run))] == sites
        assert "token" not in results.command, "Flower's secret"
    assert "west: no node" in "".join(Results.read(Path("coordinator/run")).notes)
    assert Ledger.read(Path("coordinator/run-2")).entries[-1].added == ("west",)
    assert not list(Path("flower").rglob("site-packages")), "nothing was installed"
