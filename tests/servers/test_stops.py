"""Servers that stop while a handler waits for its client to leave, which has left already."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

import httpx
import pytest
from support.asgi_servers import ASGI_SERVERS, ASGIServer
from support.executors import until

pytestmark = pytest.mark.anyio

TIMEOUT_SECONDS = 60.0
KEY = {"Idempotency-Key": "k"}
# uvicorn ends itself with the signal that it was told to stop by.
CLEAN_ENDS = {0, -signal.SIGTERM}


@pytest.mark.parametrize("name", ASGI_SERVERS)
async def test_a_server_stops_by_itself_and_the_retry_is_answered(
    name: str, tmp_path: Path, database_url: str
) -> None:
    server = ASGIServer(
        name,
        tmp_path,
        "waiting_program:app",
        app_dir=Path(__file__).parent,
        environment={"ASGI_DURABLE_URL": database_url},
    )
    with server:
        await leave_a_request(server, tmp_path / "begun")
        end = await asyncio.to_thread(server.terminate)
    with server:
        retry = httpx.post(f"{server.url}/wait", headers=KEY, timeout=TIMEOUT_SECONDS)

    assert (retry.status_code, retry.json()) == (200, "done")
    assert end in CLEAN_ENDS
    assert "Traceback" not in server.log


async def leave_a_request(server: ASGIServer, begun: Path) -> None:
    """Send a request, and go away once its handler runs."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_SECONDS) as client:
        client.sendall(
            b"POST /wait HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n"
            b"Idempotency-Key: k\r\n\r\n"
        )

        async def has_begun() -> bool:
            return begun.exists()

        await until(has_begun)
