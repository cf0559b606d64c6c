"""The order in which tasks and threads of a process write to a SQLite file."""

from __future__ import annotations

import asyncio
import threading

import pytest
from support.databases.storages import until

from asgi_durable.storage.sqlite import SQLiteStorage
from asgi_durable.storage.sqlite.locks import WriteTurn

pytestmark = pytest.mark.anyio

PATIENCE_SECONDS = 60.0


async def waiters(turn: WriteTurn, number: int) -> None:
    async def are_there() -> bool:
        return len(turn._waiters) == number

    assert await until(are_there)


async def test_tasks_and_threads_have_it_in_the_order_in_which_they_came() -> None:
    turn, order = WriteTurn(), []

    async def in_task(name: str) -> None:
        async with turn:
            order.append(name)

    def in_thread(name: str) -> None:
        with turn:
            order.append(name)

    async with turn:
        working = []
        for number in range(6):
            work = asyncio.to_thread(in_thread, str(number)) if number % 2 else in_task(str(number))
            working.append(asyncio.create_task(work))
            await waiters(turn, number + 1)
    await asyncio.gather(*working)

    assert order == ["0", "1", "2", "3", "4", "5"]


async def test_one_that_is_cancelled_while_it_waits_keeps_nobody_waiting() -> None:
    turn = WriteTurn()

    async def wait() -> str:
        async with turn:
            return "had it"

    async with turn:
        cancelled, other = asyncio.create_task(wait()), asyncio.create_task(wait())
        await waiters(turn, 2)
        cancelled.cancel()
        await asyncio.wait([cancelled])
    assert await other == "had it"


async def test_one_that_is_cancelled_as_it_gets_the_turn_passes_it_on() -> None:
    turn = WriteTurn()

    async def wait() -> str:
        async with turn:
            return "had it"

    await turn.__aenter__()
    cancelled, other = asyncio.create_task(wait()), asyncio.create_task(wait())
    await waiters(turn, 2)
    await turn.__aexit__()
    cancelled.cancel()

    assert await other == "had it"
    assert cancelled.cancelled()


async def test_an_event_loop_that_ended_keeps_nobody_waiting() -> None:
    turn = WriteTurn()
    loop = asyncio.new_event_loop()
    left: list[asyncio.Task[None]] = []

    async def wait() -> None:
        async with turn:
            pytest.fail("it had the turn")

    def leave_a_waiter() -> None:
        left.append(loop.create_task(wait()))
        loop.call_later(0.0, loop.stop)
        loop.run_forever()
        loop.close()
        left[0]._log_destroy_pending = False  # it is dropped on purpose

    async with turn:
        thread = threading.Thread(target=leave_a_waiter)
        thread.start()
        await asyncio.to_thread(thread.join, PATIENCE_SECONDS)
        assert len(turn._waiters) == 1
    async with asyncio.timeout(PATIENCE_SECONDS):
        async with turn:
            assert not turn._waiters


async def test_a_thread_waits_for_its_turn_and_not_for_the_file(sqlite_url: str) -> None:
    storage = SQLiteStorage(f"{sqlite_url}?busy_timeout=0.01")
    await storage.open()

    def write() -> str:
        with storage.blocking_transaction(None):
            return "written"

    async with storage.transaction(None):
        writing = asyncio.create_task(asyncio.to_thread(write))
        await waiters(storage._turn, 1)
        # Longer than the busy timeout of the file.
        await asyncio.sleep(0.05)
    assert await writing == "written"
    await storage.close()
