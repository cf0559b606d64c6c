"""The client of the HTTP benchmark, in a process of its own: plain sockets and asyncio."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable

from benchmarks.support.harness import cpu_seconds

__all__ = ["Client"]

BODY = b'{"number":0}'
PLAIN, NEW, REPLAY = "plain", "new key", "replay"
LAST_CHUNK = b"\r\n0\r\n\r\n"
LATEST_ANSWER_SECONDS = 120.0


class Client:
    """Sends requests over persistent connections, each when the one before has its response."""

    def __init__(self, _: str) -> None:
        self._count = 0
        self._prefix = uuid.uuid4().hex

    async def open(self) -> None:
        """There is nothing to be opened."""

    async def close(self) -> None:
        """There is nothing to be closed."""

    async def load(
        self, port: int, kind: str, connections: int, seconds: float
    ) -> dict[str, object]:
        """Send requests for a while, and return how they fared.

        Args:
            port: Of the server, on 127.0.0.1.
            kind: ``"plain"`` has no key, ``"new key"`` another one for each request, and
                ``"replay"`` one for each connection, which was sent before.
            connections: How many.
            seconds: For how long new requests are sent.
        """
        loop = asyncio.get_running_loop()
        senders = [_Sender(self._requests(kind)) for _ in range(connections)]
        for sender in senders:
            await loop.create_connection(lambda sender=sender: sender, "127.0.0.1", port)
        async with asyncio.timeout(LATEST_ANSWER_SECONDS):
            if kind == REPLAY:
                await asyncio.gather(*(sender.send_until(0.0) for sender in senders))
                for sender in senders:
                    sender.forget()
            began, cpu_began = time.perf_counter(), cpu_seconds()
            await asyncio.gather(*(sender.send_until(began + seconds) for sender in senders))
        elapsed = time.perf_counter() - began
        for sender in senders:
            sender.close()
        latencies = sorted(latency for sender in senders for latency in sender.latencies)
        statuses = sum((sender.statuses for sender in senders), Counter[str]())
        return {
            "count": len(latencies),
            "per_second": len(latencies) / elapsed,
            "p50_ms": latencies[len(latencies) // 2] * 1e3,
            "p99_ms": latencies[min(len(latencies) - 1, len(latencies) * 99 // 100)] * 1e3,
            "client_cpu_us": (cpu_seconds() - cpu_began) / len(latencies) * 1e6,
            "statuses": statuses,
        }

    def _requests(self, kind: str) -> Callable[[], bytes]:
        if kind == NEW:
            return lambda: _request(self._new_key())
        request = _request(self._new_key() if kind == REPLAY else None)
        return lambda: request

    def _new_key(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count}"


class _Sender(asyncio.Protocol):
    """One connection."""

    def __init__(self, next_request: Callable[[], bytes]) -> None:
        self.latencies: list[float] = []
        self.statuses: Counter[str] = Counter()
        self._next_request = next_request
        self._received = b""
        self._sent_at = self._stop_at = 0.0
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the waiting request."""
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError(f"the server hung up: {exc}"))

    def data_received(self, data: bytes) -> None:
        """Send the next request once a response is complete."""
        self._received += data
        size = _size_of_answer(self._received)
        if size is None:
            return
        now = time.perf_counter()
        self.latencies.append(now - self._sent_at)
        self.statuses[self._received[9:12].decode()] += 1
        self._received = self._received[size:]
        if now < self._stop_at:
            self._send()
        elif self._done is not None:
            self._done.set_result(None)

    async def send_until(self, stop_at: float) -> None:
        """Send at least one request, and more until a moment."""
        self._stop_at = stop_at
        self._done = asyncio.get_running_loop().create_future()
        self._send()
        await self._done

    def forget(self) -> None:
        """Leave out what was so far."""
        self.latencies.clear()
        self.statuses.clear()

    def close(self) -> None:
        """Disconnect."""
        self._transport.close()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(self._next_request())


def _request(key: str | None) -> bytes:
    header = f"Idempotency-Key: {key}\r\n" if key is not None else ""
    return (
        f"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}Content-Type: application/json\r\n"
        f"Content-Length: {len(BODY)}\r\n\r\n"
    ).encode() + BODY


def _size_of_answer(received: bytes) -> int | None:
    """Return how many bytes the response has, ``None`` while it is incomplete."""
    end = received.find(b"\r\n\r\n") + 4
    if end < 4:
        return None
    size = None
    for line in received[:end].lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            size = end + int(line[15:])
        elif line == b"transfer-encoding: chunked" and received.endswith(LAST_CHUNK):
            size = len(received)
    return size if size is not None and len(received) >= size else None
