"""Connections whose other end was lost without a message."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg

__all__ = ["bytes_moved", "notice_silence"]

# A peer that is silent for so long counts as lost. Not TCP_USER_TIMEOUT: a server that waits for a
# lock does not read its input, and is alive.
KEEPALIVE = {
    "TCP_KEEPIDLE": 5,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
}
# Of Linux's `struct tcp_info`: what the peer has acknowledged, and what came from it.
BYTES_ACKED_AND_RECEIVED = struct.Struct("=120x2Q")


def notice_silence(connection: asyncpg.Connection) -> None:
    """Let the system end a connection whose peer is silent: a statement may take any time.

    asyncpg sets nothing of the kind: without it a transaction waits for ever for a machine that
    was switched off, if all that it has sent was acknowledged.
    """
    with _socket_of(connection) as own:
        if own is None:
            return
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):
                own.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def bytes_moved(connection: asyncpg.Connection) -> tuple[int, int] | None:
    """Return how many bytes its peer has taken and sent, ``None`` where the system does not say."""
    with _socket_of(connection) as own:
        if own is None or not hasattr(socket, "TCP_INFO"):
            return None
        info = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    if len(info) < BYTES_ACKED_AND_RECEIVED.size:
        return None
    taken, sent = BYTES_ACKED_AND_RECEIVED.unpack_from(info)
    return (taken, sent) if taken and sent else None


@contextmanager
def _socket_of(connection: asyncpg.Connection) -> Iterator[socket.socket | None]:
    """Give a second number for the socket of a TCP connection; uvloop gives none of its own."""
    transport: Any = getattr(connection, "_transport", None)
    given: Any = transport.get_extra_info("socket") if transport is not None else None
    if os.name != "posix" or given is None or given.family == socket.AF_UNIX or given.fileno() < 0:
        yield None
        return
    # Its options belong to the socket, which both numbers share.
    with socket.socket(fileno=os.dup(given.fileno())) as own:
        yield own
