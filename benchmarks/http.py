"""Requests per second of apps under uvicorn, with our middlewares, others', and with none.

Each app has a uvicorn process of its own, with one worker; the client is a process as well.
All are measured in turn, round by round. A response other than 200 is noted.

    python -m benchmarks.http [--short] [--json FOLDER] [--only fastapi]
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.contestants.registry import Entry
from benchmarks.http_contestants.parts import URL_VARIABLE
from benchmarks.http_contestants.registry import APPS, App
from benchmarks.support.databases import POSTGRES, SQLITE, Databases, databases, free_port
from benchmarks.support.harness import (
    Notes,
    cpu_seconds_of,
    in_turn,
    median_of,
    median_ratio,
    options,
    print_table,
    version_of,
    write_json,
)
from benchmarks.support.workers import REPOSITORY, Worker, WorkerError

CLIENT = Entry("client", "benchmarks.support.http_client:Client")
START_SECONDS = 60.0
END_SECONDS = 20.0
WARM_UP_SECONDS = 0.2
BASES = {"raw": "raw: bare", "fastapi": "fastapi: bare"}
OURS_OVER_DBOS = ("fastapi: asgi-durable", "fastapi: dbos, 2 steps")


@dataclass(frozen=True)
class Target:
    """A running app and one kind of requests."""

    label: str
    database: str
    kind: str
    port: int
    pid: int


@contextmanager
def serving(app: App, url: str) -> Iterator[tuple[int, int]]:
    """Run an app in uvicorn; yield its port and its process id."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", app.factory, "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--no-access-log", "--log-level", "warning"],
            cwd=REPOSITORY,
            env={**os.environ, URL_VARIABLE: url},
            stdout=log,
            stderr=log,
        )
        try:
            if not _is_listening(port, process):
                log.seek(0)
                lines = log.read().decode(errors="replace").strip().splitlines()
                raise WorkerError(lines[-1] if lines else "the server does not start")
            yield port, process.pid
        finally:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _is_listening(port: int, process: subprocess.Popen[bytes]) -> bool:
    give_up_at = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < give_up_at:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.05)
    return False


def start_all(
    apps: Sequence[App], places: Databases, stack: ExitStack, notes: Notes
) -> list[Target]:
    """Start all servers; return what is to be measured."""
    targets = []
    for app in apps:
        database = app.database or "none"
        label = f"{app.name} ({database})"
        if missing := [name for name in app.needs if version_of(name) is None]:
            notes.leave_out(label, f"{', '.join(missing)} not installed")
            continue
        url = places.new(app.database, app.factory.partition(":")[2]) if app.database else ""
        try:
            port, pid = stack.enter_context(serving(app, url))
        except WorkerError as error:
            notes.leave_out(label, str(error))
            continue
        targets += [Target(app.name, database, kind, port, pid) for kind in app.kinds]
    return targets


def measure(client: Worker, target: Target, connections: int, seconds: float) -> dict[str, Any]:
    """Put load on a server.

    Raises:
        WorkerError: The client failed, or a response was not 200.
    """
    cpu_before = cpu_seconds_of(target.pid)
    found = client.call(
        "load", port=target.port, kind=target.kind, connections=connections, seconds=seconds
    )
    failures = {status: n for status, n in found["statuses"].items() if status != "200"}
    if failures:
        msg = f"answers {failures}"
        raise WorkerError(msg)
    found["server_cpu_us"] = (cpu_seconds_of(target.pid) - cpu_before) / found["count"] * 1e6
    return dict(found)


Samples = dict[tuple[Target, int], list[dict[str, Any]]]


def measure_all(targets: Sequence[Target], chosen: Any, notes: Notes) -> Samples:
    """Measure everybody with every number of connections."""
    samples: Samples = {}
    with Worker(CLIENT, "") as client:
        for target in targets:
            # A contestant that cannot do it fails below, where that is noted.
            with contextlib.suppress(WorkerError):
                measure(client, target, 16, WARM_UP_SECONDS)
        for connections in chosen.connections:
            for _, target in in_turn(targets, chosen.rounds):
                try:
                    found = measure(client, target, connections, chosen.seconds)
                except WorkerError as error:
                    label = f"{target.label} ({target.database}), {target.kind}, one round"
                    notes.leave_out(f"{label} at {connections} connections", str(error))
                    # An empty place: ratios are taken round by round.
                    found = {}
                samples.setdefault((target, connections), []).append(found)
    return samples


def print_samples(targets: Sequence[Target], samples: Samples, chosen: Any) -> None:
    """Print a table for each number of connections, and what the request with steps costs."""
    by_name = {(target.label, target.kind): target for target in targets}
    for connections in chosen.connections:
        rows = []
        for target in targets:
            found = samples.get((target, connections), [])
            base = by_name.get((BASES[target.label.partition(":")[0]], "plain"))
            ratio = median_ratio(found, samples.get((base, connections), []), "per_second")
            figures = ("per_second", "p50_ms", "p99_ms", "server_cpu_us")
            cells = [median_of(found, figure) for figure in figures]
            rows.append(
                (f"{target.label}, {target.kind}", [target.database, *cells[:3], cells[3], ratio])
            )
        columns = ["database", "req/s", "p50 ms", "p99 ms", "server CPU µs", "÷ own bare"]
        print_table(f"{connections} connections", columns, rows)
    print_ratios(targets, samples, chosen)


def print_ratios(targets: Sequence[Target], samples: Samples, chosen: Any) -> None:
    """Print how many times as many keyed requests we serve as DBOS does."""
    ours, dbos = OURS_OVER_DBOS
    peers = {(t.database, t.kind): t for t in targets if t.label == dbos}
    rows = []
    for target in targets:
        peer = peers.get((target.database, target.kind))
        if target.label.startswith(ours) and peer is not None:
            ratios = [
                median_ratio(samples.get((target, n), []), samples.get((peer, n), []), "per_second")
                for n in chosen.connections
            ]
            rows.append((f"{target.label}, {target.kind}, {target.database}", ratios))
    columns = [f"{connections} conn." for connections in chosen.connections]
    print_table("req/s ÷ dbos", columns, rows)


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = options(__doc__)
    parser.add_argument("--only", help="apps whose names have this in them")
    parser.add_argument("--connections", nargs="+", type=int)
    parser.add_argument("--seconds", type=float, help="of one measurement")
    chosen, notes = parser.parse_args(), Notes()
    chosen.rounds = chosen.rounds or (1 if chosen.short else 3)
    chosen.seconds = chosen.seconds or (0.4 if chosen.short else 1.0)
    chosen.connections = chosen.connections or ([16] if chosen.short else [1, 16, 64])
    apps = [
        app
        for app in APPS
        if (app.is_short or not chosen.short) and (chosen.only or "") in app.name
    ]
    with ExitStack() as stack:
        places = stack.enter_context(databases([SQLITE, POSTGRES]))
        targets = start_all(apps, places, stack, notes)
        samples = measure_all(targets, chosen, notes)
    print_samples(targets, samples, chosen)
    notes.print()
    results = [
        {"app": t.label, "database": t.database, "kind": t.kind, "connections": n, "rounds": found}
        for (t, n), found in samples.items()
    ]
    write_json(chosen.json, "http", results, notes)


if __name__ == "__main__":
    main()
