"""Real servers on the loopback interface, for the tests of carriers."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import asyncssh
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


@dataclass(frozen=True)
class SftpServer:
    """An SFTP server; ``home`` is what lies in its ``/``."""

    port: int
    home: Path
    ssh: Path

    @property
    def url(self) -> str:
        return f"sftp://north@127.0.0.1:{self.port}/drop"


@contextmanager
def sftp_server(folder: Path) -> Iterator[SftpServer]:
    """``folder/home/drop`` over SFTP; ``folder/.ssh`` is that of a user whom the server knows."""
    home, ssh = folder / "home", folder / ".ssh"
    (home / "drop").mkdir(parents=True)
    ssh.mkdir(mode=0o700)
    user, host = (
        asyncssh.generate_private_key("ssh-ed25519"),
        asyncssh.generate_private_key("ssh-ed25519"),
    )
    user.write_private_key(str(ssh / "id_ed25519"))
    user.write_public_key(str(folder / "authorized_keys"))
    loop, started, ports = asyncio.new_event_loop(), threading.Event(), []
    stop = asyncio.Event()

    def files(channel: Any) -> asyncssh.SFTPServer:
        return asyncssh.SFTPServer(channel, chroot=str(home).encode())

    async def serve() -> None:
        server = await asyncssh.create_server(
            asyncssh.SSHServer, "127.0.0.1", 0, server_host_keys=[host], sftp_factory=files,
            authorized_client_keys=str(folder / "authorized_keys"),
        )  # fmt: skip
        ports.append(server.get_port())
        started.set()
        await stop.wait()
        server.close()
        await server.wait_closed()

    def run() -> None:
        loop.run_until_complete(serve())
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.05))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(30)
    public = host.export_public_key().decode().strip()
    (ssh / "known_hosts").write_text(f"[127.0.0.1]:{ports[0]} {public}\n")
    yield SftpServer(ports[0], home / "drop", ssh)
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)


@dataclass
class PutServer:
    """An HTTPS server that takes files by PUT, for one token."""

    files: dict[str, bytes] = field(default_factory=dict)
    shows: bool = True
    spoils: bool = False
    token: str = "secret-token"
    port: int = 0

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/drop/"


@contextmanager
def put_server(certificate: Path) -> Iterator[PutServer]:
    """HTTPS with the certificate and key in this file."""
    state = PutServer()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, status: int, content: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _known(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {state.token}"

        def _body(self) -> bytes:
            if "Content-Length" in self.headers:
                return self.rfile.read(int(self.headers["Content-Length"]))
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content

        def do_PUT(self) -> None:
            content = self._body()
            if not self._known():
                return self._answer(401)
            state.files[self.path] = content[:-1] if state.spoils else content
            return self._answer(201)

        def do_GET(self) -> None:
            if not (self._known() and state.shows):
                return self._answer(403)
            if self.path not in state.files:
                return self._answer(404)
            return self._answer(200, state.files[self.path])

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    state.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()


@dataclass(frozen=True)
class WebdavServer:
    """A WebDAV server over TLS; ``home`` is what lies in its ``/``."""

    port: int
    home: Path

    @property
    def url(self) -> str:
        return f"webdavs://north@localhost:{self.port}/drop"


@contextmanager
def webdav_server(folder: Path, certificate: Path, password: str) -> Iterator[WebdavServer]:
    """``folder`` over WebDAV, for the user ``north``."""
    from cheroot import wsgi
    from cheroot.ssl.builtin import BuiltinSSLAdapter
    from wsgidav.wsgidav_app import WsgiDAVApp

    (folder / "drop").mkdir()
    app = WsgiDAVApp(
        {
            "provider_mapping": {"/": str(folder)},
            "simple_dc": {"user_mapping": {"*": {"north": {"password": password}}}},
            "http_authenticator": {"accept_basic": True, "accept_digest": False},
            "verbose": 0,
            "logging": {"enable": False},
        }
    )
    server = wsgi.Server(("127.0.0.1", 0), app)
    server.ssl_adapter = BuiltinSSLAdapter(str(certificate), str(certificate))
    server.prepare()
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    yield WebdavServer(server.bind_addr[1], folder / "drop")
    server.stop()
    thread.join(10)


def self_signed(path: Path) -> Path:
    """A certificate of ``localhost`` and its key, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path
