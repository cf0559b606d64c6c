"""Statements, commits and bytes of WAL for each workflow on Postgres, by the server's counters.

Statements are those that clients sent, ``BEGIN`` and ``COMMIT`` included. Commits are the
transactions that wrote something, counted by their ids: each waits for the disk. Contestants
run one after the other, as the counters are the whole server's.

    python -m benchmarks.roundtrips [--short] [--json FOLDER]
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

from benchmarks.contestants.registry import engines_of
from benchmarks.support.databases import POSTGRES, databases
from benchmarks.support.harness import Notes, options, print_table, write_json
from benchmarks.support.workers import Worker, WorkerError, open_workers

SETTINGS = {
    "shared_preload_libraries": "pg_stat_statements",
    # The statements of clients, and not those that functions in the server run for them.
    "pg_stat_statements.track": "top",
    "pg_stat_statements.max": "10000",
}
COUNTERS = """
SELECT (SELECT coalesce(sum(calls), 0)::int8 FROM pg_stat_statements AS s
        JOIN pg_database AS d ON d.oid = s.dbid WHERE d.datname = $1) AS statements,
       pg_snapshot_xmax(pg_current_snapshot())::text::int8 AS commits,
       pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::int8 AS wal_bytes
"""
FIGURES = ("statements", "commits", "wal_bytes")
CELLS = [(steps, concurrency) for concurrency in (1, 64) for steps in (1, 10)]


async def read_counters(url: str, database: str) -> dict[str, int]:
    """Return the counters as they are now."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        row = await connection.fetchrow(COUNTERS, database)
    finally:
        await connection.close()
    return {name: int(row[name]) for name in FIGURES}


def count(worker: Worker, url: str, steps: int, concurrency: int, chosen: Any) -> dict[str, float]:
    """Run workflows and return what each took."""
    server, _, database = url.rpartition("/")

    def counters() -> dict[str, int]:
        return asyncio.run(read_counters(f"{server}/postgres", database))

    arguments = {"steps": steps, "concurrency": concurrency, "seconds": 0}
    worker.call("measure", **arguments, count=concurrency * 2)
    before = counters()
    wanted = max(chosen.count, concurrency * chosen.waves)
    worker.call("measure", **arguments, count=wanted)
    after = counters()
    return {name: (after[name] - before[name]) / wanted for name in FIGURES}


def main() -> None:
    """Count, print, and write JSON where asked."""
    parser = options(__doc__)
    parser.add_argument("--contestants", nargs="+")
    chosen, notes = parser.parse_args(), Notes()
    chosen.count, chosen.waves = (30, 3) if chosen.short else (200, 10)
    results: dict[str, dict[str, dict[str, float]]] = {}
    with databases([POSTGRES], SETTINGS) as places:
        for entry in engines_of(POSTGRES, chosen.contestants):
            url = places.new(POSTGRES, entry.name)
            with open_workers([entry], {entry.name: url}, notes, POSTGRES) as workers:
                for worker in workers:
                    found = results.setdefault(worker.name, {})
                    for steps, concurrency in CELLS:
                        name = f"{steps} st, c{concurrency}"
                        try:
                            found[name] = count(worker, url, steps, concurrency, chosen)
                        except WorkerError as error:
                            notes.leave_out(f"{worker.name}, {name}", str(error))
    columns = [f"{steps} st, c{concurrency}" for steps, concurrency in CELLS]
    for figure in FIGURES:
        rows = [
            (who, [found.get(column, {}).get(figure) for column in columns])
            for who, found in results.items()
        ]
        print_table(f"postgres: {figure.replace('_', ' ')} per workflow", columns, rows)
    rows = [
        (who, [_per_step(found, figure, c) for figure in FIGURES for c in (1, 64)])
        for who, found in results.items()
    ]
    columns = [f"{figure.replace('_', ' ')}, c{c}" for figure in FIGURES for c in (1, 64)]
    print_table("postgres: per step more", columns, rows)
    notes.print()
    write_json(chosen.json, "roundtrips", results, notes)


def _per_step(found: dict[str, dict[str, float]], figure: str, concurrency: int) -> float | None:
    ten, one = found.get(f"10 st, c{concurrency}"), found.get(f"1 st, c{concurrency}")
    return (ten[figure] - one[figure]) / 9 if ten and one else None


if __name__ == "__main__":
    main()
