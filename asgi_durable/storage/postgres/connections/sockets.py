"""Socket options of connections whose peer may disappear without closing them."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg

__all__ = ["bytes_moved", "enable_keepalive"]

# A peer that acknowledges no probe for so long is lost. TCP_USER_TIMEOUT is not used: a server
# that waits for a lock does not read from its socket, and is alive.
KEEPALIVE = {
    "TCP_KEEPIDLE": 5,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
}
# Two fields of Linux's `struct tcp_info`: tcpi_bytes_acked and tcpi_bytes_received.
BYTES_ACKED_AND_RECEIVED = struct.Struct("=120x2Q")


def enable_keepalive(connection: asyncpg.Connection) -> None:
    """Let the system end a connection whose peer is lost.

    asyncpg does not enable it. Without it a transaction waits for ever for a machine that was
    switched off, if all data sent before was acknowledged.
    """
    with _socket_of(connection) as own:
        if own is None:
            return
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):
                own.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def bytes_moved(connection: asyncpg.Connection) -> tuple[int, int] | None:
    """Return how many bytes the peer has acknowledged and sent; ``None`` if that is unknown."""
    with _socket_of(connection) as own:
        if own is None or not hasattr(socket, "TCP_INFO"):
            return None
        info = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    if len(info) < BYTES_ACKED_AND_RECEIVED.size:
        return None
    acknowledged, sent = BYTES_ACKED_AND_RECEIVED.unpack_from(info)
    return (acknowledged, sent) if acknowledged and sent else None


@contextmanager
def _socket_of(connection: asyncpg.Connection) -> Iterator[socket.socket | None]:
    """Open the socket of a TCP connection by a second descriptor.

    uvloop gives out no real socket object.
    """
    transport: Any = getattr(connection, "_transport", None)
    known: Any = transport.get_extra_info("socket") if transport is not None else None
    if os.name != "posix" or known is None or known.family == socket.AF_UNIX or known.fileno() < 0:
        yield None
        return
    # Options belong to the socket, which both descriptors share.
    with socket.socket(fileno=os.dup(known.fileno())) as own:
        yield own
