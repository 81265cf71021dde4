"""How HTTP is read from a connection, and written to it."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Bytes in which the first line of a request ends, if it is one.
MAX_LINE = 8192


class HTTPConnection(HttpToolsProtocol):
    """Speaks HTTP/1.1 by httptools, and leaves clients of HTTP/1.0 to h11.

    httptools is the faster one, but what uvicorn writes with it to a client of 1.0 is chunked,
    which such a client cannot read. h11 ends what has no length by closing the connection.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # What has come, until the version is known.
        self._beginning: bytes | None = b""

    def data_received(self, data: bytes) -> None:
        if self._beginning is None:
            super().data_received(data)
            return
        self._beginning += data
        line, end, _ = self._beginning.partition(b"\n")
        if not end and len(line) < MAX_LINE:
            return
        data, self._beginning = self._beginning, None
        if line.rstrip().endswith(b" HTTP/1.0"):
            self._hand_over(data)
        else:
            super().data_received(data)

    def _hand_over(self, data: bytes) -> None:
        self.connections.discard(self)
        older = H11Protocol(self.config, self.server_state, self.app_state, self.loop)
        older.connection_made(self.transport)
        self.transport.set_protocol(older)
        older.data_received(data)
