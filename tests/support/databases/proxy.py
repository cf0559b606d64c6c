"""A network between a client and a server that loses what the server says."""

from __future__ import annotations

import asyncio
import math
import socket
from types import TracebackType
from typing import Self

CHUNK_BYTES = 65536
# How much of a large message a slow network passes on before it pauses.
BUFFER_BYTES = 65536
POLL_SECONDS = 0.01


class Proxy:
    """Passes connections on to a port of this machine; cuts or silences them when asked to.

    Args:
        port: Where the server is.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._replies_until_cut: int | None = None
        # Connections are numbered; those with a lower number than this are silent.
        self._silent_below: float = 0
        self._delivers = False
        self._silenced = asyncio.Event()
        self._pause_seconds = 0.0
        self._open: set[asyncio.StreamWriter] = set()
        self._listener: asyncio.Server | None = None
        self.port = 0
        self.connections_made = 0

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

    def fall_silent(self, *, new_connections: bool = False, delivers: bool = False) -> None:
        """Accept all data on the open connections, and pass nothing back.

        The end of a connection is not passed back either.

        Args:
            new_connections: True to accept new connections as well, and keep them as silent.
            delivers: True if the server gets the data, and only its responses are held back.
        """
        self._silent_below = math.inf if new_connections else self.connections_made
        self._delivers = delivers
        self._silenced.clear()

    def speak_again(self) -> None:
        """Pass on what new connections say; the silent ones stay silent."""
        self._silent_below = self.connections_made

    def slow_down(self, pause_seconds: float) -> None:
        """Pause after every large part of what is sent to the server."""
        self._pause_seconds = pause_seconds

    async def stop_listening(self) -> None:
        """Refuse new connections."""
        assert self._listener is not None
        self._listener.close()

    async def something_is_lost(self) -> None:
        """Wait until something was sent that is not answered any more."""
        await self._silenced.wait()

    async def __aenter__(self) -> Self:
        """Listen."""
        listening = socket.create_server(("127.0.0.1", 0))
        # Those that it accepts inherit it.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self._listener = await asyncio.start_server(self._serve, sock=listening)
        self.port = listening.getsockname()[1]
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
        number = self.connections_made
        self.connections_made += 1
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
            self._open |= {writer, to_server}
            await asyncio.gather(
                self._pass_on(number, reader, to_server),
                self._pass_replies_on(number, from_server, writer),
            )
        except ConnectionError:
            pass
        finally:
            for end in (writer, to_server):
                if end is not None:
                    end.transport.abort()
                    self._open.discard(end)

    async def _pass_on(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            if number < self._silent_below:
                self._silenced.set()
                if not self._delivers:
                    continue
            writer.write(chunk)
            await writer.drain()
            if len(chunk) > CHUNK_BYTES // 4:
                await asyncio.sleep(self._pause_seconds)
        raise ConnectionAbortedError

    async def _pass_replies_on(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            if number < self._silent_below:
                break
            if self._replies_until_cut:
                self._replies_until_cut -= 1
                if self._replies_until_cut == 0:
                    raise ConnectionAbortedError
            writer.write(chunk)
            await writer.drain()
        # Silence hides the end of a connection as well.
        while number < self._silent_below and not writer.transport.is_closing():
            await asyncio.sleep(POLL_SECONDS)
        raise ConnectionAbortedError
