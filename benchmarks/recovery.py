"""How long a fresh process takes to finish what a killed one has left.

A process starts workflows of five steps. Once three steps of each are recorded and the fourth
has begun it is killed; another one is started, and the clock runs from there until all are
finished. So that a crash is noticed is part of the time. Peers that need very long get fewer
workflows; the table says so, and what that makes for as many.

    python -m benchmarks.recovery [--short] [--json FOLDER]
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from benchmarks.contestants.registry import DBOS, OURS, Entry, engines_of
from benchmarks.support.databases import DATABASES, Databases, databases
from benchmarks.support.harness import (
    Notes,
    cpu_seconds_of,
    in_turn,
    options,
    print_table,
    write_json,
)
from benchmarks.support.progress import TABLES
from benchmarks.support.workers import Worker, WorkerError, why_not

STEPS, DONE_STEPS = 5, 3
POLL_SECONDS = {OURS: 0.02, DBOS: 0.25}
GIVE_UP_SECONDS = 480.0


@dataclass(frozen=True)
class Case:
    """A contestant on a database, and with how many workflows."""

    database: str
    entry: Entry
    count: int


def recover(case: Case, places: Databases) -> dict[str, float]:
    """Leave workflows and have them finished; return how long that took."""
    url = places.new(case.database, case.entry.name)
    tables = TABLES[case.entry.name]
    with Worker(case.entry, url) as worker:
        worker.call("open")
        worker.call(
            "start_waiting",
            count=case.count,
            steps=STEPS,
            closed_at=DONE_STEPS,
            within=GIVE_UP_SECONDS,
        )
        worker.kill()
    with Worker(case.entry, url) as worker:
        rss_before, cpu_before = worker.call("rss_bytes"), cpu_seconds_of(worker.pid)
        began = time.perf_counter()
        worker.call("open")
        while tables.has_open(url):
            if time.perf_counter() - began > GIVE_UP_SECONDS:
                msg = f"{case.count} workflows not finished within {GIVE_UP_SECONDS:.0f} s"
                raise WorkerError(msg)
            time.sleep(POLL_SECONDS[case.entry.name])
        seconds, cpu = time.perf_counter() - began, cpu_seconds_of(worker.pid) - cpu_before
        rss = worker.call("rss_bytes") - rss_before
    done = tables.count_done(url)
    if done != case.count:
        msg = f"{done} of {case.count} workflows succeeded"
        raise WorkerError(msg)
    return {
        "count": case.count,
        "seconds": seconds,
        "per_second": case.count / seconds,
        "cpu_us": cpu / case.count * 1e6,
        "rss_mb": rss / 2**20,
    }


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = options(__doc__)
    parser.add_argument("--databases", nargs="+", choices=DATABASES, default=DATABASES)
    parser.add_argument("--count", type=int)
    parser.add_argument("--peer-count", type=int)
    chosen, notes = parser.parse_args(), Notes()
    count = chosen.count or (1_000 if chosen.short else 10_000)
    peer_count = chosen.peer_count or (50 if chosen.short else 500)
    counts = {OURS: count, DBOS: min(count, peer_count)}
    cases = []
    for database in chosen.databases:
        for entry in engines_of(database, list(counts)):
            if reason := why_not(entry):
                notes.leave_out(f"{entry.name} ({database})", reason)
            else:
                cases.append(Case(database, entry, counts[entry.name]))
    results: list[dict[str, Any]] = []
    with databases(chosen.databases) as places:
        for _, case in in_turn(cases, chosen.rounds or (1 if chosen.short else 2)):
            where = {"database": case.database, "contestant": case.entry.name}
            try:
                results.append({**where, **recover(case, places)})
            except WorkerError as error:
                notes.leave_out(f"{case.entry.name} ({case.database})", str(error))
    print_results(results, count)
    notes.print()
    write_json(chosen.json, "recovery", results, notes)


def print_results(results: list[dict[str, Any]], count: int) -> None:
    """Print the best round of each, and how long as many workflows would take."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for found in sorted(results, key=lambda found: found["seconds"], reverse=True):
        best[found["database"], found["contestant"]] = found
    rows = []
    for (database, who), found in sorted(best.items()):
        seconds = count / found["per_second"]
        is_measured = found["count"] == count
        dbos = best.get((database, DBOS))
        ratio = found["per_second"] / dbos["per_second"] if dbos else None
        cells = [
            f"{found['count']:,}",
            found["seconds"],
            found["per_second"],
            f"{seconds:,.1f}" if is_measured else f"about {seconds:,.0f} (extrapolated)",
            ratio,
            found["cpu_us"],
            found["rss_mb"],
        ]
        rows.append((f"{database}: {who}", cells))
    columns = [
        "workflows",
        "seconds",
        "workflows/s",
        f"seconds for {count:,}",
        "÷ dbos",
        "CPU µs each",
        "RSS + MB",
    ]
    print_table(f"recovery, {DONE_STEPS} of {STEPS} steps done; best round", columns, rows)


if __name__ == "__main__":
    main()
