"""Workflows per second, latency and processor time of the engine, beside peers and limits.

Every contestant has a process of its own, and all are measured in turn, round by round. The
``raw_*`` ones are hand-written: they put the same rows into the same tables in the same
commits, and leave out what a library is for.

    python -m benchmarks.engine [--short] [--json FOLDER] [--databases sqlite postgres]
        [--contestants asgi-durable raw_group ...] [--steps 0 1 10] [--concurrency 1 16 128]
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.contestants.registry import DBOS, LIMIT, engines_of
from benchmarks.support.databases import DATABASES, Databases, databases
from benchmarks.support.harness import (
    Notes,
    in_turn,
    median_of,
    median_ratio,
    options,
    print_table,
    write_json,
)
from benchmarks.support.workers import Worker, WorkerError, open_workers

Cell = tuple[int, int]
# By contestant and cell, a sample for each round.
Samples = dict[str, dict[Cell, list[dict[str, float]]]]

WARM_UP_CONCURRENCY = 16
FIGURES = {
    "per_second": "workflows/s",
    "cpu_us": "client CPU µs per workflow",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
}


def measure_all(
    workers: Sequence[Worker],
    cells: Sequence[Cell],
    chosen: Any,
    leave_out: Callable[[str, str], None],
) -> Samples:
    """Measure everybody in every cell; who fails in one is noted, and left out of it."""
    samples: Samples = {worker.name: {} for worker in workers}
    for steps in sorted({steps for steps, _ in cells}):
        for worker in workers:
            warm_up(worker, steps, chosen.seconds / 4)
    for cell in cells:
        steps, concurrency = cell
        failed: set[str] = set()
        for _, worker in in_turn(workers, chosen.rounds):
            if worker.name in failed:
                continue
            try:
                found = worker.call(
                    "measure", steps=steps, concurrency=concurrency, seconds=chosen.seconds
                )
            except WorkerError as error:
                failed.add(worker.name)
                samples[worker.name].pop(cell, None)
                leave_out(f"{worker.name}, {steps} steps, concurrency {concurrency}", str(error))
            else:
                samples[worker.name].setdefault(cell, []).append(found)
    return samples


def warm_up(worker: Worker, steps: int, seconds: float) -> None:
    """Let connections, caches and statements come into being."""
    # A contestant that cannot do it fails in its cells, where that is noted.
    with contextlib.suppress(WorkerError):
        worker.call("measure", steps=steps, concurrency=WARM_UP_CONCURRENCY, seconds=seconds)


def print_samples(database: str, cells: Sequence[Cell], samples: Samples) -> None:
    """Print a table for each measurement, and the ratios to the contestants that matter."""
    columns = [f"{steps} st, c{concurrency}" for steps, concurrency in cells]
    for figure, title in FIGURES.items():
        rows = [
            (name, [median_of(found.get(cell, []), figure) for cell in cells])
            for name, found in samples.items()
        ]
        print_table(f"{database}: {title}", columns, rows)
    for other in (DBOS, LIMIT):
        if other not in samples:
            continue
        rows = [
            (
                name,
                [
                    median_ratio(found.get(cell, []), samples[other].get(cell, []), "per_second")
                    for cell in cells
                ],
            )
            for name, found in samples.items()
        ]
        print_table(f"{database}: workflows/s ÷ {other}", columns, rows)


def run(database: str, places: Databases, chosen: Any, notes: Notes) -> list[dict[str, Any]]:
    """Measure on one database; return a record for each contestant and cell."""
    entries = engines_of(database, chosen.contestants)
    urls = {entry.name: places.new(database, entry.name) for entry in entries}
    cells = [(steps, concurrency) for steps in chosen.steps for concurrency in chosen.concurrency]
    with open_workers(entries, urls, notes, database) as workers:
        samples = measure_all(
            workers, cells, chosen, lambda who, why: notes.leave_out(f"{who} ({database})", why)
        )
    print_samples(database, cells, samples)
    return [
        {
            "database": database,
            "contestant": name,
            "steps": steps,
            "concurrency": concurrency,
            "rounds": rounds,
        }
        for name, found in samples.items()
        for (steps, concurrency), rounds in found.items()
    ]


def choose() -> argparse.Namespace:
    """Read the options."""
    parser = options(__doc__)
    parser.add_argument("--databases", nargs="+", choices=DATABASES, default=DATABASES)
    parser.add_argument("--contestants", nargs="+")
    parser.add_argument("--steps", nargs="+", type=int)
    parser.add_argument("--concurrency", nargs="+", type=int)
    parser.add_argument("--seconds", type=float, help="of one measurement")
    chosen = parser.parse_args()
    chosen.rounds = chosen.rounds or (1 if chosen.short else 3)
    chosen.seconds = chosen.seconds or (0.3 if chosen.short else 2.0)
    chosen.steps = chosen.steps or ([1, 10] if chosen.short else [0, 1, 10])
    chosen.concurrency = chosen.concurrency or ([1, 128] if chosen.short else [1, 16, 128])
    return chosen


def main() -> None:
    """Measure, print, and write JSON where asked."""
    chosen, notes = choose(), Notes()
    results: list[dict[str, Any]] = []
    with databases(chosen.databases) as places:
        for database in chosen.databases:
            results += run(database, places, chosen, notes)
    print(
        f"\nMedians of {chosen.rounds} rounds of {chosen.seconds} s; SQLite in WAL with "
        "synchronous=FULL (dbos: as it comes, rollback journal), Postgres with its defaults."
    )
    notes.print()
    write_json(chosen.json, "engine", results, notes)


if __name__ == "__main__":
    main()
