"""Errors with which a server ends a connection that waits for nothing.

asyncpg does not keep them: what comes while no call waits is an unexpected message to it. The
next call says that the connection is closed, and not why.
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

__all__ = ["Farewell", "listen_for_farewell"]

_ERROR = b"E"
_SEVERITY, _FATAL = "V", "FATAL"
# One byte for the type, four for the length.
_HEADER_BYTES = 5


class Farewell(asyncio.Protocol):
    """Passes all that arrives on to the driver, and keeps what may be the last message.

    Args:
        protocol: The driver's.
    """

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._last_error = b""

    def data_received(self, data: bytes) -> None:
        """Take note of an error, and pass it on."""
        if data[:1] == _ERROR:
            self._last_error = data
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass it on."""
        is_kept_open: bool | None = self._protocol.eof_received()
        return is_kept_open

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on."""
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass it on."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._protocol.resume_writing()

    @property
    def error(self) -> asyncpg.PostgresError | None:
        """With what the server has ended the connection, ``None`` if it has not."""
        fields = dict(_fields(self._last_error))
        if fields.get(_SEVERITY) != _FATAL:
            return None
        error: asyncpg.PostgresError = asyncpg.PostgresError.new(fields)
        return error


def listen_for_farewell(connection: Any) -> Farewell:
    """Listen to a new connection of the driver's."""
    transport: Any = getattr(connection, "_transport", None)
    farewell = Farewell(transport.get_protocol())
    transport.set_protocol(farewell)
    return farewell


def _fields(message: bytes) -> list[tuple[str, str]]:
    """Return the fields of an error that the server has sent, by their codes."""
    length = int.from_bytes(message[1:_HEADER_BYTES], "big")
    texts = message[_HEADER_BYTES : 1 + length].decode(errors="replace").split("\0")
    return [(text[0], text[1:]) for text in texts if text]
