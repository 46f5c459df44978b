"""How a carrier is reached: the file system behind a URL, and its errors in our words."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec

from oneround.errors import OneRoundError

WHOLE_AT_ONCE = ("s3", "https", "http")
"""Schemes where no half file is ever seen, or nothing can be renamed."""

FOLDER = ("", "file")
WEBDAV = ("webdav", "webdavs", "dav", "davs")
_LOCAL = ("localhost", "127.0.0.1", "::1")


def connected(url: str, scheme: str) -> tuple[Any, str]:
    """The file system that fsspec has for a URL, and the folder in it."""
    parts = urlsplit(url)
    token, password = os.environ.get("ONEROUND_TOKEN"), os.environ.get("ONEROUND_PASSWORD")
    if parts.password:
        raise OneRoundError(
            "a password in a URL can be seen by others.",
            file=without_secrets(url),
            remedy="Put it into the environment variable ONEROUND_PASSWORD.",
        )
    if scheme in ("http", "webdav", "dav") and token and parts.hostname not in _LOCAL:
        raise OneRoundError(
            "without TLS everybody on the way can read the token.",
            file=without_secrets(url),
            remedy="Use https:// or webdavs://, or unset ONEROUND_TOKEN.",
        )
    connect = _CONNECT.get(scheme)
    if connect is not None:
        found: tuple[Any, str] = connect(url, token, password)
        return found
    files, root = fsspec.url_to_fs(url)
    return files, root


def without_secrets(url: str) -> str:
    """The URL for messages: without password, and without query, which may have a signature."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    user = f"{parts.username}@" if parts.username else ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{user}{parts.hostname or ''}{port}{parts.path}"


@contextmanager
def in_our_words(what: str, place: str, scheme: str) -> Iterator[None]:
    """Errors of any carrier as :class:`OneRoundError`, without the secrets that they may quote.

    Args:
        what: what cannot be done, such as ``"listed"``.
        place: URL for messages.
        scheme: scheme of the URL.
    """
    try:
        yield
    except (OneRoundError, KeyboardInterrupt):
        raise
    except ModuleNotFoundError as error:
        raise OneRoundError(
            f"this carrier needs the package {error.name!r}.",
            file=place,
            remedy=f"pip install 'oneround[{_EXTRAS.get(scheme, scheme)}]'.",
        ) from error
    except FileExistsError as error:
        raise OneRoundError(
            "it has changed at the carrier; the file that is here stays, and may be accepted.",
            file=place,
            remedy="Ask the site whether the newer file counts; if so, run again with --replace.",
        ) from error
    except Exception as error:
        reason = _reason(error)
        raise OneRoundError(
            f"cannot be {what}: {reason}.", file=place, remedy=_remedy(error, scheme)
        ) from error


def http_status(error: Exception) -> int:
    """The HTTP status in the errors of aiohttp and webdav4; 0: it is none of these."""
    found = getattr(error, "status", None) or getattr(error, "status_code", None)
    return found if isinstance(found, int) else 0


def _reason(error: Exception) -> str:
    known = {FileNotFoundError: "there is no such folder", PermissionError: "permission denied"}
    if text := next((text for kind, text in known.items() if isinstance(error, kind)), None):
        return text
    if status := http_status(error):
        return f"the server answers {status}"
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return re.sub(r"\?\S+", "?…", text)[:200]


def _remedy(error: Exception, scheme: str) -> str:
    text = f"{type(error).__name__} {error}"
    if "HostKey" in text or "host key" in text.lower():
        return "Compare the host key with its owner's, then add it to ~/.ssh/known_hosts."
    if isinstance(error, PermissionError) or http_status(error) in (401, 403):
        return "Check user, key or token (ONEROUND_PASSWORD, ONEROUND_TOKEN) and the permissions."
    if isinstance(error, FileNotFoundError):
        return "Check the path; the folder must be there already."
    return "Check the URL and the network, then run the same command again."


def _local(url: str, token: str | None, password: str | None) -> tuple[Any, str]:
    path = unquote(urlsplit(url).path) if url.startswith("file:") else url
    return fsspec.filesystem("file"), os.path.abspath(path)


def _sftp(url: str, token: str | None, password: str | None) -> tuple[Any, str]:
    sshfs, parts = import_module("sshfs"), urlsplit(url)
    options: dict[str, Any] = {"port": parts.port or 22, "known_hosts": (), "timeout": 60}
    if parts.username:
        options["username"] = unquote(parts.username)
    if password:
        options["password"] = password
    files = sshfs.SSHFileSystem(parts.hostname, skip_instance_cache=True, **options)
    return files, unquote(parts.path).removeprefix("/~/") or "."


def _webdav(url: str, token: str | None, password: str | None) -> tuple[Any, str]:
    webdav, parts = import_module("webdav4.fsspec"), urlsplit(url)
    scheme = "https" if parts.scheme.endswith("s") else "http"
    host = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    auth = (unquote(parts.username), password or "") if parts.username else None
    base = f"{scheme}://{host}/{parts.path.strip('/')}"
    return webdav.WebdavFileSystem(base, auth=auth, headers=headers, timeout=60), ""


def _https(url: str, token: str | None, password: str | None) -> tuple[Any, str]:
    import_module("aiohttp")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    options = {"headers": headers, "trust_env": True}  # the proxy of the hospital
    return fsspec.filesystem("http", client_kwargs=options, skip_instance_cache=True), url


def _s3(url: str, token: str | None, password: str | None) -> tuple[Any, str]:
    import_module("s3fs")
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    return files, url.removeprefix("s3://").rstrip("/")


_CONNECT: dict[str, Callable[[str, str | None, str | None], tuple[Any, str]]] = {
    "": _local,
    "file": _local,
    "sftp": _sftp,
    "ssh": _sftp,
    "s3": _s3,
    **dict.fromkeys(WEBDAV, _webdav),
    **dict.fromkeys(("http", "https"), _https),
}

_EXTRAS = {"ssh": "sftp", "http": "https", **dict.fromkeys(WEBDAV, "webdav")}
