"""A network between a client and a server that loses what the server says."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

CHUNK_BYTES = 65536


class Proxy:
    """Passes connections on to a port of this machine, and cuts one of them when asked to.

    Args:
        port: Where the server is.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._replies_until_cut: int | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._listener: asyncio.Server | None = None
        self.port = 0

    def cut_at_reply(self, number: int) -> None:
        """Let the server do all it is asked to, but lose its n-th reply from now on.

        The connection that it was for is cut then, and no other one.
        """
        self._replies_until_cut = number

    def stop_cutting(self) -> bool:
        """Pass everything on again; return whether a connection was cut."""
        was_cut = self._replies_until_cut == 0
        self._replies_until_cut = None
        return was_cut

    async def __aenter__(self) -> Self:
        """Listen."""
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Cut all connections."""
        assert self._listener is not None
        self._listener.close()
        for writer in self._open:
            writer.transport.abort()
        while self._open:
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server = None
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
            self._open |= {writer, to_server}
            await asyncio.gather(
                _pass_on(reader, to_server), self._pass_replies_on(from_server, writer)
            )
        except ConnectionError:
            pass
        finally:
            for end in (writer, to_server):
                if end is not None:
                    end.transport.abort()
                    self._open.discard(end)

    async def _pass_replies_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            if self._replies_until_cut:
                self._replies_until_cut -= 1
                if self._replies_until_cut == 0:
                    raise ConnectionAbortedError
            writer.write(chunk)
            await writer.drain()
        raise ConnectionAbortedError


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()
    raise ConnectionAbortedError
