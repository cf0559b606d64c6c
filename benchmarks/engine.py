"""Workflows per second of the engine on SQLite, beside a hand-written group-commit loop.

The hand-written loop writes the same rows of a workflow with one step, in the same two
commits, on one thread with one connection: it is the limit of what any engine can reach on
this machine. Left out of it are replay, retries, types, fencing and context. Both run in the
same process, in turn, round by round; the table shows medians and their ratio.

    python benchmarks/engine.py [--rounds 5] [--seconds 2.0] [--json results.json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from asgi_durable import Durable
from asgi_durable.storage.schema import MIGRATIONS

CONCURRENCIES = (1, 16, 128)
Run = Callable[[int], Awaitable[object]]


INSERT_WORKFLOW = f"INSERT INTO asgi_durable_workflows VALUES ({', '.join('?' * 17)})"
INSERT_STEP = "INSERT INTO asgi_durable_steps VALUES (?, ?, ?, ?, ?, ?, ?)"
END_WORKFLOW = (
    "UPDATE asgi_durable_workflows SET state = ?, output = ?, updated_at_us = ? "
    "WHERE workflow_id = ?"
)
DIGEST = b"0123456789abcdef"


class HandWritten:
    """The writes of a 1-step workflow in group commit, and nothing else.

    The tables, their columns and their indexes are the library's.
    """

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        for migration in MIGRATIONS:
            for statement in migration(SQLiteDialect_pysqlite()):
                self._connection.execute(statement)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: list[tuple[str, tuple[object, ...], asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None
        self._count = 0

    async def run(self, number: int) -> object:
        """Run one workflow: start, step, and step record together with the end."""
        self._count += 1
        workflow_id = f"{self._count:036d}"
        now = time.time_ns() // 1000
        data = json.dumps({"number": number}).encode()
        row = (workflow_id, "work", "PENDING", "executor", 1, None, None, True, None, None)
        await self._submit("start", (*row, data, None, None, now, now, 0, 0))
        output = json.dumps(await step_body(number)).encode()
        now = time.time_ns() // 1000
        self._submit("step", (workflow_id, 0, "step", DIGEST, output, None, now))
        await self._submit("end", ("SUCCESS", output, now, workflow_id))
        return json.loads(output)

    def close(self) -> None:
        """Close the database."""
        self._thread.shutdown()
        self._connection.close()

    def _submit(self, kind: str, row: tuple[object, ...]) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((kind, row, future))
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._drain())
        return future

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            batch, self._pending = self._pending, []
            rows: dict[str, list[tuple[object, ...]]] = {"start": [], "step": [], "end": []}
            for kind, row, _ in batch:
                rows[kind].append(row)
            try:
                await loop.run_in_executor(self._thread, self._write, rows)
            except sqlite3.Error as error:
                for _, _, future in batch:
                    future.set_exception(error)
                raise
            for _, _, future in batch:
                future.set_result(None)

    def _write(self, rows: dict[str, list[tuple[object, ...]]]) -> None:
        cursor = self._connection.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        cursor.executemany(INSERT_WORKFLOW, rows["start"])
        cursor.executemany(INSERT_STEP, rows["step"])
        cursor.executemany(END_WORKFLOW, rows["end"])
        cursor.execute("COMMIT")


async def step_body(number: int) -> int:
    """Do what the step of both contestants does: nothing."""
    return number + 1


async def measure(run: Run, concurrency: int, seconds: float) -> tuple[float, float]:
    """Return workflows per second, and microseconds of CPU per workflow."""
    done = 0
    stop_at = time.perf_counter() + seconds

    async def client() -> None:
        nonlocal done
        while time.perf_counter() < stop_at:
            await run(done)
            done += 1

    began, cpu_began = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    return done / elapsed, cpu / done * 1e6


async def compare(folder: Path, rounds: int, seconds: float) -> list[dict[str, float]]:
    """Run both in turn and return a row of medians for each concurrency."""
    durable = Durable(f"sqlite:///{folder}/engine.db")
    limit = HandWritten(folder / "limit.db")

    @durable.step
    async def step(number: int) -> int:
        return await step_body(number)

    @durable.workflow
    async def work(number: int) -> int:
        return await step(number)

    results = []
    async with durable:
        for run in (work, limit.run):
            await measure(run, 16, seconds / 4)
        for concurrency in CONCURRENCIES:
            pairs = [
                (
                    await measure(work, concurrency, seconds),
                    await measure(limit.run, concurrency, seconds),
                )
                for _ in range(rounds)
            ]
            results.append(summary(concurrency, pairs))
    limit.close()
    return results


def summary(
    concurrency: int, pairs: list[tuple[tuple[float, float], tuple[float, float]]]
) -> dict[str, float]:
    """Return the medians of all rounds; the ratio is taken round by round."""
    return {
        "concurrency": concurrency,
        "asgi_durable_per_second": statistics.median(ours[0] for ours, _ in pairs),
        "hand_written_per_second": statistics.median(limit[0] for _, limit in pairs),
        "ratio": statistics.median(ours[0] / limit[0] for ours, limit in pairs),
        "asgi_durable_cpu_us": statistics.median(ours[1] for ours, _ in pairs),
        "hand_written_cpu_us": statistics.median(limit[1] for _, limit in pairs),
    }


def main() -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        results = asyncio.run(compare(Path(folder), options.rounds, options.seconds))
    print("1-step workflows on SQLite, WAL, synchronous=FULL; medians")
    print("concurrency | asgi-durable wf/s | hand-written wf/s | ratio | CPU us/wf | limit CPU us")
    for row in results:
        print(
            f"{row['concurrency']:11.0f} | {row['asgi_durable_per_second']:17,.0f} | "
            f"{row['hand_written_per_second']:17,.0f} | {row['ratio']:5.2f} | "
            f"{row['asgi_durable_cpu_us']:9.0f} | {row['hand_written_cpu_us']:12.0f}"
        )
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
