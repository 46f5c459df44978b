"""Silent clients, on real connections."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import uvicorn

from oneround.web import app, connections
from oneround.web.app import Place, make_app

FORM = (
    b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\n\r\nt"
)


@pytest.fixture
def port(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(connections, "MOST", 5)
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        make_app(place, ["127.0.0.1"]), http=connections.Connection, ws="none", log_level="error",
        lifespan="off", limit_concurrency=10,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join(30)


def is_open(client: socket.socket) -> bool:
    client.settimeout(0.01)
    try:
        return client.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


@pytest.mark.parametrize("said", [b"", b"GET / HT", FORM])
def test_many_silent_clients_take_the_page_from_nobody(port: int, said: bytes) -> None:
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
    for client in clients:
        client.sendall(said) if is_open(client) else None
    assert httpx.get(f"http://127.0.0.1:{port}/login").status_code == 200
    assert sum(map(is_open, clients)) <= 10
    for client in clients:
        client.close()


@pytest.mark.parametrize("said", [b"", b"GET / HT", FORM])
def test_who_falls_silent_is_left(port: int, said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADERS_SECONDS", 0.3)
    monkeypatch.setattr(app, "FORM_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(said)
        client.settimeout(10)
        answer, start = b"", time.monotonic()
        while chunk := client.recv(4096):
            answer += chunk
        assert time.monotonic() - start < 5
        assert (b" 408 " in answer) == (said == FORM)


def test_the_address_with_most_connections_gives_way() -> None:
    class Made(connections.Connection):
        def __init__(self, address: str, begun: float, busy: bool) -> None:
            self.client, self.begun, self._busy, self.ended = (address, 1), begun, busy, False

        @property
        def may_go(self) -> bool:
            return not self._busy

        def end(self) -> None:
            self.ended = True

    made = [Made("a", 0, False), Made("b", 1, True), Made("b", 2, False), Made("b", 3, False)]
    connections._make_room(set(made))
    assert [connection.ended for connection in made] == [False, False, True, False]
