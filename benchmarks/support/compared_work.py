"""The work that ``benchmarks.check`` compares: parts of the library, by its public names alone.

    python -m benchmarks.support.compared_work CASE COUNT

prints the processor time of ``COUNT`` calls, after some calls that warm up. It runs the library
that is first on the path, which may be an older one.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from asgi_durable import Durable

__all__ = ["CASES", "Case"]

Call = Callable[[int], Awaitable[object]]

WARM_UP = 32
# Until the start's own work in the background is over.
SETTLING_SECONDS = 0.5
AT_ONCE = 16
STEPS = 10
BODY = b'{"number":0}'
HEADERS = [
    (b"host", b"127.0.0.1:8000"),
    (b"user-agent", b"benchmarks/1.0"),
    (b"accept", b"*/*"),
    (b"authorization", b"Bearer token"),
    (b"content-type", b"application/json"),
    (b"content-length", b"12"),
]


class Case:
    """One kind of call.

    Args:
        name: Its name in the table.
        count: How many calls are compared.
        prepare: Returns the call, given an instance that is started afterwards.
    """

    def __init__(self, name: str, count: int, prepare: Callable[[Durable], Call]) -> None:
        self.name = name
        self.count = count
        self.prepare = prepare


def _workflow(steps: int) -> Callable[[Durable], Call]:
    def prepare(durable: Durable) -> Call:
        @durable.step(name="step")
        async def step(number: int) -> dict[str, int]:
            return {"number": number}

        @durable.workflow(name="work")
        async def work(number: int) -> int:
            for at in range(steps):
                await step(number + at)
            return number

        return work

    return prepare


def _request(key: Callable[[int], bytes | None]) -> Callable[[Durable], Call]:
    def prepare(durable: Durable) -> Call:
        @durable.step(name="charge")
        async def charge(number: int) -> int:
            return number

        async def app(_scope: Any, receive: Any, send: Any) -> None:
            await receive()
            if key(0) is not None:
                await charge(1)
                await charge(2)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})

        stack = durable.wrap(app)

        async def call(number: int) -> None:
            headers = list(HEADERS)
            if (value := key(number)) is not None:
                headers.append((b"idempotency-key", value))
            await _exchange(stack, headers)

        return call

    return prepare


async def _exchange(app: Any, headers: list[tuple[bytes, bytes]]) -> None:
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/orders",
        "raw_path": b"/orders",
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
    }
    messages = iter([{"type": "http.request", "body": BODY, "more_body": False}])
    never = asyncio.Event()
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        message = next(messages, None)
        if message is None:
            await never.wait()
        return message or {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        statuses.append(message.get("status", 0))

    await app(scope, receive, send)
    if statuses[:1] != [200]:
        msg = f"the response was {statuses[:1]}"
        raise RuntimeError(msg)


CASES = {
    "step": Case("workflow of ten steps, 16 callers", 64, _workflow(STEPS)),
    "workflow": Case("workflow of one step, 16 callers", 256, _workflow(1)),
    "first": Case(
        "keyed request of two steps, 16 at once", 128, _request(lambda number: b"k%d" % number)
    ),
    "replay": Case(
        "its replay, 32 keys, 16 at once", 256, _request(lambda number: b"k%d" % (number % WARM_UP))
    ),
    "unkeyed": Case("request without a key", 1024, _request(lambda _number: None)),
}


def _started(durable: Durable) -> AbstractAsyncContextManager[object]:
    return durable


async def _measure(case: Case, count: int) -> float:
    durable = Durable("sqlite://")
    call = case.prepare(durable)
    async with _started(durable):
        await _all(call, range(WARM_UP))
        await asyncio.sleep(SETTLING_SECONDS)
        # Collections come at any time, and would count for one part and not for another.
        gc.collect()
        gc.disable()
        began = time.process_time()
        await _all(call, range(WARM_UP, WARM_UP + count))
        return time.process_time() - began


async def _all(call: Call, numbers: range) -> None:
    for first in range(0, len(numbers), AT_ONCE):
        await asyncio.gather(*(call(number) for number in numbers[first : first + AT_ONCE]))


def _main() -> None:
    case, count = CASES[sys.argv[1]], int(sys.argv[2])
    sys.stdout.write(f"{asyncio.run(_measure(case, count))}\n")


if __name__ == "__main__":
    _main()
