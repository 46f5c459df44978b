"""Real processes: what only shows on a real connection, and what is left when one is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from oneround.coordinator.inbox import Inbox, status_of, submissions_in
from oneround.errors import OneRoundError
from oneround.web.database import State
from oneround.web.intake import Intake
from oneround.web.server import is_loopback, serve
from tests import servers
from tests.web.conftest import STUDY, names


@dataclass
class Server:
    """``oneround serve`` in a process of its own, for the folder ``inbox``."""

    process: subprocess.Popen[str]
    inbox: Path
    url: str
    link: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, site: str | None, **options: object) -> tuple[httpx.Client, str]:
        """Who is logged in, and what the hidden field of the form holds."""
        client = httpx.Client(base_url=self.url, timeout=60, follow_redirects=True, **options)
        with State(self.inbox) as state:
            token = state.new_token(site)
        page = client.post("/login", data={"token": token})
        return client, re.search(r'name="csrf" value="(\w+)"', page.text)[1]

    def head(self, client: httpx.Client, *more: str) -> bytes:
        """Of a request that uploads, up to the body."""
        ((name, value),) = client.cookies.items()
        lines = (
            "POST /upload HTTP/1.1", f"Host: 127.0.0.1:{self.port}", f"Cookie: {name}={value}",
            "Content-Type: multipart/form-data; boundary=line", *more, "", "",
        )  # fmt: skip
        return "\r\n".join(lines).encode()


@contextmanager
def serving(folder: Path, *options: object) -> Iterator[Server]:
    study, inbox = folder / "blood.toml", folder / "inbox"
    inbox.mkdir(exist_ok=True)
    STUDY.write(study)
    command = [sys.executable, "-m", "oneround", "serve", study, folder / "run", "--inbox", inbox,
               "--port", 0, "--json", *options]  # fmt: skip
    with subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, text=True) as process:
        said = "".join(iter(process.stdout.readline, "}\n")) + "}"
        yield Server(process, inbox, **json.loads(said))
        process.send_signal(signal.SIGINT)
        process.stdout.close()
        process.wait(30)


def begin(csrf: str) -> bytes:
    """The body up to the content of the file."""
    return (
        f'--line\r\nContent-Disposition: form-data; name="csrf"\r\n\r\n{csrf}\r\n'
        '--line\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    ).encode()


END = b"\r\n--line--\r\n"


def wait_for(what: object, timeout: float = 30) -> None:
    end = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), "--limit", 200_000) as found:
        yield found


def connected(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def answer(connection: socket.socket) -> bytes:
    content = b""
    while chunk := connection.recv(1 << 16):
        content += chunk
    return content


def test_the_printed_link(server: Server) -> None:
    with httpx.Client(follow_redirects=True) as client:
        page = client.get(server.link)
        key = re.search(r'name="token" value="([^"]+)"', page.text)[1]
        assert "coordinator" in client.post(f"{server.url}/login", data={"token": key}).text
        assert "server" not in page.headers


def test_reading_stops_at_the_limit(server: Server) -> None:
    """A body without end, whose length nobody has declared."""
    client, csrf = server.client("north")
    chunk = b"%x\r\n%b\r\n"
    with connected(server) as connection:
        connection.sendall(server.head(client, "Transfer-Encoding: chunked"))
        content = begin(csrf)
        connection.sendall(chunk % (len(content), content))
        sent = 0
        with suppress(OSError):
            while sent < 200_000_000:
                connection.sendall(chunk % (1 << 16, b"x" * (1 << 16)))
                sent += 1 << 16
        assert sent < 20_000_000, "the rest of it is in buffers"
    wait_for(lambda: names(server.inbox) == set())
    assert client.get("/").status_code == 200


def test_a_length_that_is_a_lie(server: Server) -> None:
    client, csrf = server.client("north")
    for length in ("-1", "99999999999999999999", "x", "5, 6"):
        with connected(server) as connection:
            connection.sendall(server.head(client, f"Content-Length: {length}") + begin(csrf))
            connection.shutdown(socket.SHUT_WR)
            assert b"HTTP/1.1 4" in answer(connection)[:12] or length[0] == "9"
    wait_for(lambda: names(server.inbox) == set())


def test_an_upload_that_breaks_off(server: Server, files: dict[str, Path]) -> None:
    client, csrf = server.client("north")
    with connected(server) as connection:
        connection.sendall(server.head(client, "Content-Length: 60000") + begin(csrf) + b"x" * 999)
        wait_for(lambda: len(names(server.inbox)) == 1)
        (part,) = names(server.inbox)
        assert part.startswith(".upload-")
        assert submissions_in(server.inbox) == []
    wait_for(lambda: names(server.inbox) == set())


@pytest.mark.parametrize("size", [30_000, 3_000_000])
def test_headers_without_end(server: Server, size: int) -> None:
    with connected(server) as connection, suppress(OSError):  # closed while it was still coming
        connection.sendall(b"GET /login HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * size)
        assert answer(connection).startswith(b"HTTP/1.1 4")
    assert httpx.get(f"{server.url}/login").status_code == 200


def test_many_uploads_at_once(server: Server, files: dict[str, Path]) -> None:
    """All sites, and one of them often: one file of each is left, whole, and all are answered."""
    visitors = [server.client(site) for site in ("north", "north", "north", "south", "west")]
    sites = ["north", "again", "north", "south", "west"]

    def send(number: int) -> str:
        client, csrf = visitors[number]
        data, file = {"csrf": csrf, "replace": "yes"}, files[sites[number]]
        return client.post("/upload", data=data, files={"file": file.open("rb")}).text

    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(send, range(5)))
    refused = [text for text in answers if "safely stored" not in text]
    assert all("Other uploads" in text for text in refused)
    assert len(refused) <= 1
    assert names(server.inbox) == {f"{site}.oneround" for site in STUDY.sites}
    assert status_of(STUDY, submissions_in(server.inbox)).accepted == 3
    for path in server.inbox.glob("*.oneround"):
        path.unlink()


def upload_slowly(
    server: Server, client: httpx.Client, csrf: str, file: Path, share: float
) -> None:
    """Send this share of the request."""
    content = file.read_bytes()
    body = begin(csrf) + content + END
    with connected(server) as connection:
        connection.sendall(server.head(client, f"Content-Length: {len(body)}"))
        connection.sendall(body[: int(len(body) * share)])
        if share < 1:
            wait_for(lambda: any(name.startswith(".upload-") for name in names(server.inbox)))
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(30)


@pytest.mark.parametrize("share", [0.5, 1])
def test_killed_during_an_upload(tmp_path: Path, files: dict[str, Path], share: float) -> None:
    """What was accepted is there still; what was not is gone, or whole and with a receipt."""
    with serving(tmp_path) as server:
        client, csrf = server.client("north")
        form = {"csrf": csrf}
        page = client.post("/upload", data=form, files={"file": files["north"].open("rb")}).text
        assert "safely stored" in page
        other, csrf = server.client("south")
        upload_slowly(server, other, csrf, files["south"], share)
    intake = Intake(Inbox(tmp_path / "inbox", STUDY))  # of the next start
    found = names(intake.inbox.folder)
    assert "north.oneround" in found
    assert found <= {"north.oneround", "south.oneround"}
    assert files["north"].read_bytes() == (intake.inbox.folder / "north.oneround").read_bytes()
    assert {receipt.file for receipt in intake.state.receipts().values()} == found
    assert all(file.accepted for file in intake.inbox.status().files)


def kill(*arguments: object, **more: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def submit_and_be_killed(inbox: Path, file: Path, at: str) -> None:
    """In a child process."""
    intake = Intake(Inbox(inbox, STUDY))
    part = inbox / ".upload-0.part"
    part.write_bytes(file.read_bytes())
    owner = {"replace": os, "fsync": os, "add": intake.state}[at]
    setattr(owner, at, kill)
    intake.receive("north", part, "0" * 64, replace=True)


@pytest.mark.parametrize("at", ["replace", "fsync", "add"])
def test_killed_between_two_steps(inbox: Path, files: dict[str, Path], at: str) -> None:
    """At every step either the earlier file is there, or the new one and then its receipt."""
    (inbox / "north.oneround").write_bytes(files["north"].read_bytes())
    child = os.fork()
    if not child:
        with suppress(BaseException):
            submit_and_be_killed(inbox, files["again"], at)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    intake = Intake(Inbox(inbox, STUDY))  # of the next start
    assert names(inbox) == {"north.oneround"}
    which, receipts = ("north", 1) if at == "replace" else ("again", 2)
    assert (inbox / "north.oneround").read_bytes() == files[which].read_bytes()
    assert len(intake.state.receipts()) == receipts


def test_tls(tmp_path: Path) -> None:
    certificate = servers.self_signed(tmp_path / "both.pem")
    with serving(tmp_path, "--tls-cert", certificate, "--name", "localhost") as server:
        assert server.url.startswith("https://localhost:")
        context = ssl.create_default_context(cafile=str(certificate))
        client, _ = server.client("north", verify=context)
        assert next(iter(client.cookies.jar)).secure


def test_addresses() -> None:
    assert [is_loopback(h) for h in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))


def test_errors_before_it_serves(intake: object, place: object) -> None:
    def ready(url: str, link: str) -> None:
        raise AssertionError

    with pytest.raises(OneRoundError, match="has no name"):
        serve(place, host="0.0.0.0", port=0, ready=ready)
    with pytest.raises(OneRoundError, match="cannot listen"):
        serve(place, host="192.0.2.1", port=0, ready=ready)
    with pytest.raises(OneRoundError, match="certificate cannot be used"):
        serve(place, host="127.0.0.1", port=0, certificate=Path(__file__), ready=ready)
