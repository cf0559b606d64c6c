"""The process of one contestant: takes orders as lines of JSON, and responds in the same way.

python -m benchmarks.support.worker MODULE:CLASS URL
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import logging
import os
import sys
import time
from typing import Any

from benchmarks.support.harness import cpu_seconds

logger = logging.getLogger(__name__)

LINE_LIMIT = 1024 * 1024


async def measure(
    contestant: Any, *, steps: int, concurrency: int, seconds: float, count: int = 0
) -> dict[str, float]:
    """Run workflows from some callers at once, each its next one when the last is through.

    Args:
        contestant: The contestant that runs them.
        steps: How many steps each workflow has.
        concurrency: How many callers.
        seconds: How long new ones are begun.
        count: How many to run instead, if not 0.
    """
    latencies: list[float] = []
    begun = 0
    gc.collect()
    began, cpu_began = time.perf_counter(), cpu_seconds()
    stop_at = began + seconds

    def retry_here() -> bool:
        return begun < count if count else time.perf_counter() < stop_at

    async def caller() -> None:
        nonlocal begun
        while retry_here():
            begun += 1
            called_at = time.perf_counter()
            await contestant.run(steps, begun)
            latencies.append(time.perf_counter() - called_at)

    # The first failure ends it, and leaves nothing behind that runs on.
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(caller())
    elapsed, cpu = time.perf_counter() - began, cpu_seconds() - cpu_began
    latencies.sort()
    return {
        "count": len(latencies),
        "seconds": elapsed,
        "per_second": len(latencies) / elapsed,
        "cpu_us": cpu / len(latencies) * 1e6,
        "p50_ms": latencies[len(latencies) // 2] * 1e3,
        "p99_ms": latencies[min(len(latencies) - 1, len(latencies) * 99 // 100)] * 1e3,
    }


def rss_bytes() -> int:
    """Return the memory that the process holds after a garbage collection."""
    gc.collect()
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def obey(contestant: Any, what: str, arguments: dict[str, Any]) -> Any:
    """Do what an order says."""
    if what == "measure":
        return await measure(contestant, **arguments)
    if what == "rss_bytes":
        return rss_bytes()
    if what == "cpu_seconds":
        return cpu_seconds()
    return await getattr(contestant, what)(**arguments)


def one_line(error: BaseException) -> str:
    """Return what happened, of a group the first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}".splitlines()[0]


async def serve(contestant: Any, answers: Any) -> None:
    """Obey until there are no more orders."""
    orders = asyncio.StreamReader(limit=LINE_LIMIT)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := await orders.readline():
        order = json.loads(line)
        try:
            answer = {"answer": await obey(contestant, order["what"], order["arguments"])}
        except Exception as error:
            logger.exception("%s failed", order["what"])
            answer = {"error": one_line(error)}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()
    await contestant.close()


def main() -> None:
    """Run the contestant that the arguments name."""
    # Nothing that a contestant prints may come between the responses.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.WARNING)
    module, _, name = sys.argv[1].partition(":")
    contestant = getattr(importlib.import_module(module), name)(sys.argv[2])
    asyncio.run(serve(contestant, answers))


if __name__ == "__main__":
    main()
