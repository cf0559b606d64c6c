"""How far a reader has to travel: calls, files and switches between files.

A call is a Python function of the library that is entered (a coroutine counts again each time it
resumes), on the event loop's thread. A switch is a call in another file than the call before it.
A step is the difference of two workflows, one of which has a step more; a request and a replay are
counted whole.

``python -m benchmarks.reading`` prints the table.
"""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Any

import asgi_durable
from asgi_durable import Durable

ROUNDS = 9
LIBRARY = str(Path(asgi_durable.__file__).parent)
HEADERS = [(b"host", b"shop"), (b"content-type", b"application/json")]


@dataclasses.dataclass
class Trip:
    """The calls of the library during some code, by file, and the switches between files."""

    calls: Counter[str] = dataclasses.field(default_factory=Counter)
    switches: int = 0
    last: str = ""

    def observe(self, frame: FrameType, event: str, _: Any) -> None:
        """Count a call; a profile function of ``sys.setprofile``."""
        name = frame.f_code.co_filename
        if event != "call" or not name.startswith(LIBRARY):
            return
        self.calls[name] += 1
        self.switches += name != self.last
        self.last = name


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far a reader travels."""

    calls: int
    files: int
    switches: int


async def trip(code: Callable[[], Awaitable[object]]) -> Trip:
    """Run some code and return the calls that it made on this thread."""
    counted = Trip()
    sys.setprofile(counted.observe)
    try:
        await code()
    finally:
        sys.setprofile(None)
    return counted


def distance(longer: Trip, shorter: Trip | None = None) -> Distance:
    """Return what one run makes more than another one."""
    less = shorter or Trip()
    more = longer.calls.copy()
    more.subtract(less.calls)
    files = sum(1 for count in more.values() if count > 0)
    return Distance(sum(more.values()), files, longer.switches - less.switches)


def median(distances: list[Distance]) -> Distance:
    """Return the median of each count."""
    rows = zip(*map(dataclasses.astuple, distances), strict=True)
    return Distance(*(round(statistics.median(row)) for row in rows))


async def one_more_step(durable: Durable) -> Distance:
    """Return what a workflow of six steps makes more than one of five."""

    @durable.step
    async def charge(number: int) -> int:
        return number

    @durable.workflow
    async def order(steps: int) -> int:
        for number in range(steps):
            await charge(number)
        return steps

    async with durable:
        await order(3)
        found = []
        for _ in range(ROUNDS):
            shorter = await trip(lambda: order(5))
            found.append(distance(await trip(lambda: order(6)), shorter))
    return median(found)


async def keyed_request(durable: Durable) -> tuple[Distance, Distance]:
    """Return what a keyed request without steps makes, and its replay."""

    async def shop(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        start = {"type": "http.response.start", "status": 201, "headers": []}
        await send(start)
        await send({"type": "http.response.body", "body": b"sold"})

    app = durable.wrap(shop)

    async def post(key: int) -> None:
        headers = [*HEADERS, (b"idempotency-key", f"key-{key}".encode())]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/orders",
            "raw_path": b"/orders",
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 50_000),
            "server": ("127.0.0.1", 80),
        }
        messages = [{"type": "http.request", "body": b'{"tea": 1}', "more_body": False}]
        disconnected = asyncio.Event()

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await disconnected.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                assert message["status"] == 201

        await app(scope, receive, send)

    first, replayed = [], []
    async with durable:
        await post(-1)
        await post(-1)
        for key in range(ROUNDS):
            first.append(distance(await trip(lambda key=key: post(key))))  # type: ignore[misc]
            replayed.append(distance(await trip(lambda key=key: post(key))))  # type: ignore[misc]
    return median(first), median(replayed)


async def table() -> str:
    """Return the table."""
    with tempfile.TemporaryDirectory() as folder:
        step = await one_more_step(Durable(f"sqlite:///{folder}/steps.db"))
        request, replay = await keyed_request(Durable(f"sqlite:///{folder}/requests.db"))
    rows = [("one more step", step), ("a keyed request", request), ("its replay", replay)]
    lines = ["| | calls | files | switches |", "|---|---:|---:|---:|"]
    lines += [f"| {name} | {of.calls} | {of.files} | {of.switches} |" for name, of in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    print(asyncio.run(table()))
