"""Servers that stop while a handler waits for its client to leave, which has left already."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

import httpx
import pytest
from support.executors import until
from support.processes.asgi_servers import ASGI_SERVERS, ASGIServer

pytestmark = pytest.mark.anyio

TIMEOUT_SECONDS = 60.0
HEADERS = b"Host: localhost\r\nContent-Length: 0\r\nIdempotency-Key: k\r\n"
# uvicorn ends itself with the signal that stopped it.
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
        environment={"ASGI_DURABLE_URL": database_url, "WAITS": "yes"},
    )
    with server:
        address = ("127.0.0.1", server.port)
        with socket.create_connection(address, timeout=TIMEOUT_SECONDS) as client:
            client.sendall(b"POST /wait HTTP/1.1\r\n" + HEADERS + b"\r\n")
            await until(lambda: "waits" in server.log)
        end = await asyncio.to_thread(server.terminate)
    server.environment["WAITS"] = ""
    with server:
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as http:
            retry = await http.post(f"{server.url}/wait", headers={"Idempotency-Key": "k"})

    assert (retry.status_code, retry.json()) == (200, "done")
    assert end in CLEAN_ENDS
    assert "Traceback" not in server.log
