"""Microseconds that each middleware adds to a request, called directly: no server, no socket.

A request is a scope of the usual size and a body of a few bytes; the app inside responds at
once. The table has the processor time of the whole process, threads included, less that of the
bare app in the same round.

    python -m benchmarks.inproc [--short] [--json FOLDER]
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.http_contestants.parts import URL_VARIABLE, ASGIApp, new_app
from benchmarks.http_contestants.registry import (
    BARE,
    CORRELATION,
    HEADER,
    IDEMKIT,
    OPENTELEMETRY,
    OTEL,
    OURS,
    TRACING,
)
from benchmarks.support.databases import SQLITE, Databases, databases
from benchmarks.support.harness import (
    Notes,
    median_of,
    options,
    print_table,
    version_of,
    write_json,
)

BODY = b'{"number":0}'
HEADERS = [
    (b"host", b"127.0.0.1:8000"),
    (b"user-agent", b"benchmarks/1.0"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
    (b"content-type", b"application/json"),
    (b"content-length", b"12"),
]
SCOPE: dict[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "POST",
    "scheme": "http",
    "path": "/",
    "raw_path": b"/",
    "query_string": b"",
    "root_path": "",
    "client": ("127.0.0.1", 50000),
    "server": ("127.0.0.1", 8000),
}
NONE, NEW, REPLAY = "no key", "new key", "replay"
BARE_NAME = "bare"


@dataclass(frozen=True)
class Subject:
    """A middleware around the bare app, and what requests it gets."""

    name: str
    factory: str
    kind: str = NONE
    needs: tuple[str, ...] = ()


SUBJECTS = (
    Subject(BARE_NAME, f"{BARE}:raw"),
    Subject("request context", f"{OURS}:request_context"),
    Subject("problem details", f"{OURS}:problem_details"),
    Subject("lifespan", f"{OURS}:lifespan"),
    Subject("idempotency (and lifespan)", f"{OURS}:idempotency"),
    Subject("request context, idempotency", f"{OURS}:context_and_idempotency"),
    Subject("whole stack", f"{OURS}:stack"),
    Subject("tracing, not sampled", f"{TRACING}:tracing_not_sampled", needs=OTEL),
    Subject("tracing, batch", f"{TRACING}:tracing", needs=OTEL),
    Subject("whole stack, not sampled", f"{TRACING}:stack_not_sampled", needs=OTEL),
    Subject("whole stack, traced, batch", f"{TRACING}:stack", needs=OTEL),
    Subject("whole stack", f"{OURS}:stack", NEW),
    Subject("whole stack", f"{OURS}:stack", REPLAY),
    Subject("asgi-correlation-id", f"{CORRELATION}:raw", needs=("asgi-correlation-id",)),
    Subject("opentelemetry, batch", f"{OPENTELEMETRY}:raw", needs=OTEL),
    Subject("opentelemetry, not sampled", f"{OPENTELEMETRY}:raw_not_sampled", needs=OTEL),
    *(
        Subject(name, factory, kind, (package,))
        for name, factory, package in (
            ("asgi-idempotency-header, memory", f"{HEADER}:memory", "asgi-idempotency-header"),
            ("idemkit, memory", f"{IDEMKIT}:memory", "idemkit"),
        )
        for kind in (NONE, NEW, REPLAY)
    ),
)


class EngineParts:
    """An app, started, and requests for it.

    Args:
        subject: Which.
        app: Made by its factory.
    """

    def __init__(self, subject: Subject, app: ASGIApp) -> None:
        self.subject = subject
        self._app = app
        self._keys = _keys(subject.kind)
        self._lifespan: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def start(self) -> None:
        """Send the start of the lifespan, and a first request."""
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._lifespan.put_nowait({"type": "lifespan.startup"})
        self._task = asyncio.create_task(
            self._app(scope, self._lifespan.get, self._answers.put)  # type: ignore[arg-type]
        )
        answer = await self._answers.get()
        assert answer["type"] == "lifespan.startup.complete", answer
        await self.request(1)

    async def stop(self) -> None:
        """Send the end of the lifespan."""
        self._lifespan.put_nowait({"type": "lifespan.shutdown"})
        await self._task

    async def request(self, count: int) -> float:
        """Send requests, one after the other; return the processor time of one, in µs."""
        statuses: list[int] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": BODY, "more_body": False}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        app, keys = self._app, self._keys
        gc.collect()
        began = time.process_time()
        for _ in range(count):
            headers = [*HEADERS, *next(keys)]
            await app({**SCOPE, "headers": headers, "state": {}}, receive, send)
        used = time.process_time() - began
        if statuses != [200] * count:
            msg = f"answers {Counter(statuses)}"
            raise RuntimeError(msg)
        return used / count * 1e6


def _keys(kind: str) -> Iterator[list[tuple[bytes, bytes]]]:
    """Yield the header with a request's key, or none."""
    if kind == NEW:
        for number in itertools.count():
            yield [(b"idempotency-key", f"key-{time.time_ns()}-{number}".encode())]
    header = [(b"idempotency-key", b"the-same-key")] if kind == REPLAY else []
    yield from itertools.repeat(header)


async def start_all(places: Databases, count: int, notes: Notes) -> list[EngineParts]:
    """Start the apps and warm them up; those that cannot be are noted and left out."""
    running = []
    for place, subject in enumerate(SUBJECTS):
        label = f"{subject.name}, {subject.kind}"
        if missing := [name for name in subject.needs if version_of(name) is None]:
            notes.leave_out(label, f"{', '.join(missing)} not installed")
            continue
        os.environ[URL_VARIABLE] = places.new(SQLITE, f"inproc_{place}")
        try:
            one = EngineParts(subject, new_app(subject.factory))
            await one.start()
            await one.request(count)
        except Exception as error:
            notes.leave_out(label, f"{type(error).__name__}: {error}")
        else:
            running.append(one)
    return running


async def measure_all(places: Databases, chosen: Any, notes: Notes) -> dict[str, list[Any]]:
    """Measure everybody in turn; by name, a sample for each round."""
    running = await start_all(places, chosen.count // 20, notes)
    samples: dict[str, list[Any]] = {}
    bare = 0.0
    for _ in range(chosen.rounds):
        for one in list(running):
            label = f"{one.subject.name}, {one.subject.kind}"
            # Keyed ones are written to disk, or looked for among all in memory: fewer will do.
            count = chosen.count if one.subject.kind == NONE else chosen.count // 20
            try:
                used = await one.request(count)
            except Exception as error:
                notes.leave_out(label, f"{type(error).__name__}: {error}")
                running.remove(one)
                samples.pop(label, None)
                continue
            bare = used if one.subject.name == BARE_NAME else bare
            samples.setdefault(label, []).append({"cpu_us": used, "added_us": used - bare})
    for one in running:
        await one.stop()
    return samples


def main() -> None:
    """Measure, print, and write JSON where asked."""
    chosen, notes = options(__doc__).parse_args(), Notes()
    chosen.rounds = chosen.rounds or (3 if chosen.short else 12)
    chosen.count = 1_000 if chosen.short else 5_000
    with databases([SQLITE]) as places:
        samples = asyncio.run(measure_all(places, chosen, notes))
    rows = [
        (name, [median_of(found, "cpu_us"), median_of(found, "added_us")])
        for name, found in samples.items()
    ]
    print_table("in process; keyed ones on SQLite", ["CPU µs per request", "added µs"], rows)
    notes.print()
    write_json(chosen.json, "inproc", samples, notes)


if __name__ == "__main__":
    main()
