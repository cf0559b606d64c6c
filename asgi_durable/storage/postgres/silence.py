"""Connections whose other end has gone without a word."""

from __future__ import annotations

import os
import socket
from typing import Any

import asyncpg

__all__ = ["notice_silence"]

# A peer that is silent for so long is gone. Not TCP_USER_TIMEOUT: a server that waits for a lock
# does not read what it is sent, and is alive.
KEEPALIVE = {
    "TCP_KEEPIDLE": 5,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
}


def notice_silence(connection: asyncpg.Connection) -> None:
    """Let the system end a connection whose peer is silent: a statement may take any time.

    asyncpg sets nothing of the kind: without it a transaction waits for ever for a machine that
    was switched off, if all that it has sent was acknowledged.
    """
    transport: Any = getattr(connection, "_transport", None)
    given = transport.get_extra_info("socket") if transport is not None else None
    if os.name != "posix" or given is None or given.family == socket.AF_UNIX:
        return
    # The options belong to the socket, which a second number for it shares; uvloop gives
    # none that they could be set with.
    with socket.socket(fileno=os.dup(given.fileno())) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):
                own.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
