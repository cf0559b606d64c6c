"""Speed and memory as a table fills and workflows wait.

First, one-step workflows at concurrency 16 with many finished ones in the table, beside an
empty one; then many workflows that wait inside a step, what memory each takes, and how fast
others are meanwhile. Tables are filled with copies of a workflow that has run, by SQL,
and on Postgres vacuumed then. Peers get fewer waiting workflows, as starting them takes long.

    python -m benchmarks.growth [--short] [--json FOLDER]
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.contestants.registry import DBOS, LIMIT, OURS, Entry, engines_of
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
from benchmarks.support.progress import TABLES, tidy_up
from benchmarks.support.workers import Worker, WorkerError, why_not

CELL = {"steps": 1, "concurrency": 16}
START_SECONDS = 540.0


def measure_in_turn(
    workers: dict[str, Worker], rounds: int, seconds: float
) -> dict[str, list[dict[str, float]]]:
    """Measure two processes of one contestant, round by round."""
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for _, name in in_turn(list(workers), rounds):
        samples[name].append(workers[name].call("measure", **CELL, seconds=seconds))
    return samples


def finished(entry: Entry, database: str, places: Databases, chosen: Any) -> dict[str, Any]:
    """Return the speed with many finished workflows in the table, and with none."""
    urls = {"empty": places.new(database, entry.name), "full": places.new(database, entry.name)}
    with Worker(entry, urls["full"]) as worker:
        worker.call("open")
        worker.call("run", steps=1, number=0)
    began = time.perf_counter()
    TABLES[entry.name].fill(urls["full"], chosen.finished)
    tidy_up(urls["full"])
    filled_in = time.perf_counter() - began
    with Worker(entry, urls["empty"]) as empty, Worker(entry, urls["full"]) as full:
        workers = {"empty": empty, "full": full}
        for worker in workers.values():
            worker.call("open")
            worker.call("measure", **CELL, seconds=chosen.seconds / 4)
        samples = measure_in_turn(workers, chosen.rounds, chosen.seconds)
    return {
        "what": "finished",
        "count": chosen.finished,
        "filled_in_seconds": filled_in,
        "empty_per_second": median_of(samples["empty"], "per_second"),
        "full_per_second": median_of(samples["full"], "per_second"),
        "ratio": median_ratio(samples["full"], samples["empty"], "per_second"),
        "cpu_ratio": median_ratio(samples["full"], samples["empty"], "cpu_us"),
    }


def waiting(entry: Entry, database: str, places: Databases, chosen: Any) -> dict[str, Any]:
    """Return what a waiting workflow costs, and how fast others are meanwhile."""
    count = chosen.waiting if entry.name == OURS else chosen.peer_waiting
    urls = [places.new(database, entry.name) for _ in range(2)]
    with Worker(entry, urls[0]) as without, Worker(entry, urls[1]) as holding:
        workers = {"without": without, "holding": holding}
        for worker in workers.values():
            worker.call("open")
            worker.call("measure", **CELL, seconds=chosen.seconds / 4)
        rss_before = holding.call("rss_bytes")
        began = time.perf_counter()
        holding.call("start_waiting", count=count, steps=1, closed_at=0, within=START_SECONDS)
        started_in = time.perf_counter() - began
        rss = holding.call("rss_bytes") - rss_before
        samples = measure_in_turn(workers, chosen.rounds, chosen.seconds)
        # They wait for ever: there is nothing to be stopped in good order.
        holding.kill()
    return {
        "what": "waiting",
        "count": count,
        "started_per_second": count / started_in,
        "rss_bytes_each": rss / count,
        "without_per_second": median_of(samples["without"], "per_second"),
        "holding_per_second": median_of(samples["holding"], "per_second"),
        "ratio": median_ratio(samples["holding"], samples["without"], "per_second"),
    }


FINISHED_COLUMNS = {
    "count": "finished in the table",
    "filled_in_seconds": "filled in s",
    "empty_per_second": "empty, wf/s",
    "full_per_second": "full, wf/s",
    "ratio": "full ÷ empty",
    "cpu_ratio": "CPU full ÷ empty",
}
WAITING_COLUMNS = {
    "count": "waiting",
    "started_per_second": "starts/s",
    "rss_bytes_each": "bytes of RSS each",
    "without_per_second": "none waiting, wf/s",
    "holding_per_second": "these waiting, wf/s",
    "ratio": "ratio",
}


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = options(__doc__)
    parser.add_argument("--databases", nargs="+", choices=DATABASES, default=DATABASES)
    parser.add_argument("--finished", type=int)
    parser.add_argument("--waiting", type=int)
    parser.add_argument("--peer-waiting", type=int)
    chosen, notes = parser.parse_args(), Notes()
    chosen.rounds = chosen.rounds or (1 if chosen.short else 5)
    chosen.seconds = 0.4 if chosen.short else 2.0
    chosen.finished = chosen.finished or (20_000 if chosen.short else 1_000_000)
    chosen.waiting = chosen.waiting or (5_000 if chosen.short else 100_000)
    chosen.peer_waiting = chosen.peer_waiting or (200 if chosen.short else 2_000)
    results: list[dict[str, Any]] = []
    with databases(chosen.databases) as places:
        for measure, who in ((finished, (OURS, DBOS, LIMIT)), (waiting, (OURS, DBOS))):
            for database in chosen.databases:
                for entry in engines_of(database, list(who)):
                    label = f"{entry.name} ({database}, {measure.__name__})"
                    try:
                        if reason := why_not(entry):
                            raise WorkerError(reason)
                        found = measure(entry, database, places, chosen)
                    except WorkerError as error:
                        notes.leave_out(label, str(error))
                    else:
                        where = {"database": database, "contestant": entry.name}
                        results.append({**where, **found})
    for what, columns in (("finished", FINISHED_COLUMNS), ("waiting", WAITING_COLUMNS)):
        rows = [
            (f"{found['database']}: {found['contestant']}", [found[name] for name in columns])
            for found in results
            if found["what"] == what
        ]
        print_table(f"growth: {what}", list(columns.values()), rows)
    notes.print()
    write_json(chosen.json, "growth", results, notes)


if __name__ == "__main__":
    main()
