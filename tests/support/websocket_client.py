"""A client of WebSockets."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Event, Request, TextMessage

PATIENCE_SECONDS = 30.0
CHUNK = 65_536


class WebSocketClient:
    """One connection; used as a context manager it is closed at the end.

    Args:
        port: Of a server on this machine.
        path: Where it is opened.
        headers: More headers of the request.
    """

    def __init__(self, port: int, path: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        self._port = port
        raw = [(name.lower().encode(), value.encode()) for name, value in headers]
        self._request = Request(host=f"127.0.0.1:{port}", target=path, extra_headers=raw)
        self._protocol = WSConnection(ConnectionType.CLIENT)

    def __enter__(self) -> Self:
        """Connect."""
        address = ("127.0.0.1", self._port)
        self._socket = socket.create_connection(address, timeout=PATIENCE_SECONDS)
        self._send(self._request)
        assert isinstance(self._next_event(), AcceptConnection)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Disconnect."""
        with self._socket:
            self._send(CloseConnection(code=1000))

    def ask(self, text: str) -> str:
        """Send a text; return the one that comes back."""
        self._send(TextMessage(data=text))
        event = self._next_event()
        assert isinstance(event, TextMessage)
        return event.data

    def _send(self, event: Event) -> None:
        self._socket.sendall(self._protocol.send(event))

    def _next_event(self) -> Event:
        while True:
            for event in self._protocol.events():
                return event
            self._protocol.receive_data(self._socket.recv(CHUNK) or None)
