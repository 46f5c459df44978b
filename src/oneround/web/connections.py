"""Connections: whoever falls silent makes room for the others.

A client that nobody knows may open many connections and say nothing, or send the form to log in
byte by byte. Such connections are closed after some seconds, and earlier if there are many, those
of the address with the most of them first. An upload of a site that is logged in is never closed
here. Behind a proxy every connection has the address of the proxy; then the oldest goes first.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_SECONDS = 10
"""Seconds within which the headers of a request have to come."""

MOST = 100
"""Connections at a time beyond which silent ones are closed."""


class Connection(H11Protocol):
    """One connection of uvicorn, with a limit of its silence."""

    begun = 0.0
    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection, for which there has to be room."""
        super().connection_made(transport)
        self.begun = self.loop.time()
        self._wait()
        if len(self.connections) > MOST:
            _make_room(cast("set[Connection]", self.connections))

    def data_received(self, data: bytes) -> None:
        """Bytes, which may be a part of the headers of a request."""
        super().data_received(data)
        if self.is_idle:
            self._wait()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def may_go(self) -> bool:
        """Whether nobody that is logged in waits for it."""
        return self.is_idle or (self.cycle.scope["path"] == "/login" and self.cycle.more_body)

    @property
    def address(self) -> str:
        """Address of the client."""
        return self.client[0] if self.client else ""

    def end(self) -> None:
        """Close it, and forget it at once."""
        self.connections.discard(cast(Any, self))
        self.transport.abort()

    def _wait(self) -> None:
        if self._due is None:
            self._due = self.loop.call_later(HEADERS_SECONDS, self._silent)

    def _stop_waiting(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _silent(self) -> None:
        self._due = None
        if self.is_idle and not self.transport.is_closing():
            self.transport.close()


def _make_room(connections: set[Connection]) -> None:
    """Close the oldest connection that may go, of the address that has most of these."""
    silent = [connection for connection in connections if connection.may_go]
    if not silent:
        return
    count = Counter(connection.address for connection in silent)
    most = max(count.values())
    of_most = [connection for connection in silent if count[connection.address] == most]
    min(of_most, key=lambda connection: connection.begun).end()
