"""What holds for every request and every answer, whatever page it is about."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
"""Policy of the pages: nothing from elsewhere, nothing inline."""

FILE = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; sandbox"
"""Policy of files that are downloaded."""

REPORT = f"img-src data:; style-src 'unsafe-inline'; {FILE}"
"""Policy of the report: its own style and pictures, no script, no origin."""

_HEADERS = {
    "Content-Security-Policy": PAGE,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_READING = ("GET", "HEAD")


class Guard:
    """Headers on every answer; no form of another web page gets through; an early answer is the
    end of the connection, so that nobody keeps on sending."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application around another one."""
        if scope["type"] != "http":  # such as lifespan
            await self._app(scope, receive, send)
            return

        waiting = scope["method"] not in _READING

        async def counted() -> Message:
            nonlocal waiting
            message = await receive()
            waiting = waiting and message.get("more_body", False)
            return message

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if waiting:
                    headers["Connection"] = "close"
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        app = self._app
        if scope["method"] not in _READING and _from_elsewhere(scope):
            app = PlainTextResponse("This form is not of this page.", 403)
        await app(scope, counted, with_headers)


def _from_elsewhere(scope: Scope) -> bool:
    """Whether the browser says that another web page sends this."""
    headers = Headers(scope=scope)
    if site := headers.get("sec-fetch-site"):
        return site != "same-origin"
    origin = headers.get("origin", "null")  # null, since our pages send no referrer
    return origin != "null" and urlsplit(origin).netloc != headers.get("host")


class Attempts:
    """Counts failed attempts to log in, by address.

    Args:
        most: Failed attempts in a minute after which an address has to wait.
        clock: Function for the time in seconds.
    """

    def __init__(self, most: int = 10, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._failed: dict[str, deque[float]] = defaultdict(deque)

    def check(self, address: str) -> None:
        """Before an attempt.

        Raises:
            HTTPException: there were too many.
        """
        start = self._clock() - 60
        for known, times in list(self._failed.items()):
            while times and times[0] < start:
                times.popleft()
            if not times:
                del self._failed[known]
        if len(self._failed.get(address, ())) >= self._most:
            raise HTTPException(
                429, "Too many attempts. Wait a minute, then try again.", {"Retry-After": "60"}
            )

    def failed(self, address: str) -> None:
        """After an attempt that failed."""
        self._failed[address].append(self._clock())
