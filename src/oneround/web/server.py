"""The process: an address, TLS if there is a certificate, a link for the coordinator."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn

from oneround.errors import OneRoundError
from oneround.web.app import Place, make_app
from oneround.web.connections import Connection

LOOPBACK = ("127.0.0.1", "localhost", "::1")

_ANY = ("0.0.0.0", "::", "")


def serve(
    place: Place,
    *,
    host: str,
    port: int,
    names: Sequence[str] = (),
    certificate: Path | None = None,
    key: Path | None = None,
    ready: Callable[[str, str], None],
) -> None:
    """Serve until interrupted.

    Args:
        place: What the pages are about; the name of its cookie gets the port.
        host: Address to listen at.
        port: Port to listen at; 0: one that is free.
        names: Host names by which browsers call this server, if other than ``host``.
        certificate: PEM file with the certificate for TLS.
        key: PEM file with the key of the certificate; ``None``: it is in the same file.
        ready: Function that gets the URL, and a link that logs the coordinator in, once.

    Raises:
        OneRoundError: nobody can listen there, the certificate cannot be used, or ``host`` is any
            address and there are no names.
    """
    if host in _ANY and not names:
        raise OneRoundError(
            "the server listens at every address and has no name.",
            remedy="Give the name in its URL with --name, such as --name blood.example.org.",
        )
    with _listening(host, port) as listening:
        port = listening.getsockname()[1]
        place.cookie = f"oneround-{port}"
        hosts = [*LOOPBACK, *([] if host in _ANY else [host]), *names]
        config = uvicorn.Config(
            make_app(place, [_in_header(name) for name in hosts]),
            http=Connection, h11_max_incomplete_event_size=1 << 14,  # headers of a request
            ws="none", lifespan="off", access_log=False, log_level="error", server_header=False,
            limit_concurrency=200, timeout_keep_alive=30, timeout_graceful_shutdown=5,
            ssl_certfile=certificate, ssl_keyfile=key,
        )  # fmt: skip
        _load(config, certificate)
        url = f"{'https' if certificate else 'http'}://{_in_url([*names, host][0])}:{port}"
        ready(url, f"{url}/login?key={place.intake.state.new_token(None, once=True)}")
        uvicorn.Server(config).run(sockets=[listening])


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OneRoundError(
            f"cannot listen at {host}, port {port}: {error.strerror or error}.",
            remedy="Choose another --port, and an address of this machine as --host.",
        ) from error


def _load(config: uvicorn.Config, certificate: Path | None) -> None:
    try:
        config.load()
    except (OSError, ValueError) as error:
        raise OneRoundError(
            f"the certificate cannot be used: {error}.",
            file=certificate,
            remedy="Give PEM files as --tls-cert and --tls-key that belong together.",
        ) from error


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _in_header(name: str) -> str:
    """As the check of the Host header takes it: of ``[::1]:8765`` it sees what is before ``:``.

    A numeric address cannot be pointed elsewhere, so that is no gap.
    """
    return "[" if ":" in name else name
