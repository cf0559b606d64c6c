"""Durable sleep: the time of its end is recorded before it begins."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.executors import kill, query, result_of, row_of, until
from support.interruption import Gate
from support.threads import in_thread

from asgi_durable import Durable, DurableUsageError, WorkflowInterruptedError
from asgi_durable.engine.recovery import takeover
from asgi_durable.engine.runs import suspension as sleepers
from asgi_durable.engine.steps import sleep
from asgi_durable.ids import child_workflow_id

pytestmark = pytest.mark.anyio

# So long that no test runs until its end, nor until the end of a stop that waits for it.
LONG_SECONDS = 36_000.0


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


class Process:
    """An executor with a workflow that sleeps between two steps.

    Args:
        url: The database.
        seconds: The length of the sleep.

    Attributes:
        ran: The steps whose bodies have begun here.
        work: The workflow.
        parent: A workflow that calls it.
        grandparent: A workflow that calls the parent.
    """

    def __init__(self, url: str, seconds: float = LONG_SECONDS, **options: Any) -> None:
        self.durable = durable = Durable(url, **{"drain_timeout": LONG_SECONDS} | options)
        self.seconds = seconds
        self.ran: list[str] = []

        @durable.step(name="step")
        async def step(name: str) -> str:
            self.ran.append(name)
            return name

        @durable.workflow(name="work", max_recovery_attempts=1)
        async def work() -> str:
            await step("before")
            await durable.sleep(self.seconds)
            return await step("after")

        @durable.workflow(name="parent")
        async def parent() -> str:
            return await work()

        @durable.workflow(name="grandparent")
        async def grandparent() -> str:
            return await parent()

        self.work, self.parent, self.grandparent = work, parent, grandparent

    async def begin(self, workflow: Callable[[], Awaitable[Any]] | None = None) -> None:
        options = self.durable.options(workflow_id="w")
        await options.start_workflow(workflow or self.work)
        await until(lambda: is_asleep(self.durable))


def is_asleep(durable: Durable, workflow_id: str = "w") -> bool:
    running = durable.engine._running
    assert running is not None
    run = running.active.find(workflow_id)
    return run is not None and sleepers.asleep_until_us(run) is not None


async def ends_of_sleeps(url: str) -> list[int]:
    sql = "SELECT finished_at_us FROM asgi_durable_steps WHERE name = 'durable.sleep'"
    return [end for (end,) in await query(url, sql)]


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the clock that ends sleeps."""

    def pass_time(seconds: float) -> None:
        real = sleepers.seconds_until
        monkeypatch.setattr(sleep, "seconds_until", lambda time_us: real(time_us) - seconds)

    return pass_time


async def test_a_sleep_takes_its_time_and_is_a_step(url: str) -> None:
    process = Process(url, seconds=0.05)
    async with process.durable:
        began_at = time.time()
        assert await process.durable.options(workflow_id="w").run_workflow(process.work) == "after"
        seconds = time.time() - began_at

    assert seconds >= 0.05
    (end,) = await ends_of_sleeps(url)
    assert began_at + 0.05 <= end / 1e6 <= began_at + seconds


async def test_its_end_is_durable_before_it_begins(url: str) -> None:
    process = Process(url)
    async with process.durable:
        await process.begin()
        (end,) = await ends_of_sleeps(url)

    assert 0 < end / 1e6 - time.time() - LONG_SECONDS + 100 < 100
    assert process.ran == ["before"]


@pytest.mark.parametrize("end", [kill, None], ids=["killed", "stopped"])
async def test_what_is_left_of_it_is_slept_after_a_restart(
    url: str, end: Any, pass_time: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sleep, "LONGEST_NAP_SECONDS", 0.01)
    first, second = Process(url), Process(url, seconds=1.0)
    await first.durable.engine.start()
    await first.begin()
    (ends_at,) = await ends_of_sleeps(url)
    await (kill(first.durable) if end else first.durable.engine.stop())

    pass_time(LONG_SECONDS - 600.0)
    async with second.durable:
        await until(lambda: is_asleep(second.durable))
        assert second.ran == []
        pass_time(LONG_SECONDS)
        assert await result_of(second.durable, "w") == "after"

    # The recorded end counts, not the length in today's code.
    assert await ends_of_sleeps(url) == [ends_at]
    assert (first.ran, second.ran) == (["before"], ["after"])


async def test_nothing_is_left_of_one_that_is_over(
    url: str, pass_time: Callable[[float], None]
) -> None:
    first, second = Process(url), Process(url)
    async with first.durable:
        await first.begin()
    pass_time(LONG_SECONDS)
    async with second.durable:
        assert await result_of(second.durable, "w") == "after"

    assert (first.ran, second.ran) == (["before"], ["after"])


async def test_a_clock_that_is_set_is_followed(
    durable: Durable, monkeypatch: pytest.MonkeyPatch, pass_time: Callable[[float], None]
) -> None:
    monkeypatch.setattr(sleep, "LONGEST_NAP_SECONDS", 0.01)

    @durable.workflow
    async def work() -> str:
        await durable.sleep(LONG_SECONDS)
        return "awake"

    handle = await durable.options(workflow_id="w").start_workflow(work)
    await until(lambda: is_asleep(durable))
    pass_time(LONG_SECONDS)

    assert await handle.get_result(timeout=30) == "awake"


async def test_sleeps_at_once_and_steps_beside_them(url: str) -> None:
    ran = []
    async with Durable(url) as durable:

        @durable.step
        async def step(number: int) -> int:
            ran.append(number)
            return number

        @durable.workflow
        async def work() -> list[int | None]:
            naps = [durable.sleep(number / 100) for number in range(5)]
            return [*await asyncio.gather(*naps, *(step(number) for number in range(5)))]

        for _ in range(2):
            result = await durable.options(workflow_id="w").run_workflow(work)
            assert result == [None] * 5 + list(range(5))

    assert sorted(ran) == list(range(5))
    assert len(await ends_of_sleeps(url)) == 5


async def test_outside_a_workflow_it_is_a_plain_sleep(url: str) -> None:
    async with Durable(url) as durable:
        for seconds in (0.0, 0.01):
            began_at = time.monotonic()
            await durable.sleep(seconds)
            assert time.monotonic() - began_at >= seconds

    assert await ends_of_sleeps(url) == []


async def test_in_a_step_it_is_a_plain_sleep(url: str) -> None:
    async with Durable(url) as durable:

        @durable.step
        async def step() -> str:
            await durable.sleep(0.0)
            return "done"

        @durable.workflow
        async def work() -> str:
            return await step()

        assert await work() == "done"

    assert await ends_of_sleeps(url) == []


@pytest.mark.parametrize("seconds", [-1, -0.001, float("nan"), float("inf"), 1e12])
async def test_no_time_that_cannot_be_slept(sqlite_url: str, seconds: float) -> None:
    async with Durable(sqlite_url) as durable:
        with pytest.raises(DurableUsageError, match="sleep"):
            await durable.sleep(seconds)
        with pytest.raises(DurableUsageError, match="sleep"):
            await in_thread(durable.blocking.sleep, seconds)


async def test_on_an_event_loop_nobody_sleeps_blocking(sqlite_url: str) -> None:
    async with Durable(sqlite_url) as durable:
        with pytest.raises(DurableUsageError, match=r"await durable\.sleep"):
            durable.blocking.sleep(0.0)


async def test_its_status_is_suspended_while_it_sleeps(url: str) -> None:
    gate = Gate()
    async with Durable(url, drain_timeout=0.0) as here, Durable(url, drain_timeout=0.0) as there:

        @here.step
        async def step() -> None:
            await gate.wait()

        @here.workflow
        async def child() -> None:
            await here.sleep(LONG_SECONDS)

        @here.workflow
        async def work() -> None:
            await step()
            await child()

        async def statuses(workflow_id: str) -> list[str]:
            handles = [await one.retrieve_workflow(workflow_id) for one in (here, there)]
            return [(await handle.get_status()).status.value for handle in handles]

        await here.options(workflow_id="w").start_workflow(work)
        await gate.reached.wait()
        assert await statuses("w") == ["PENDING", "PENDING"]
        gate.open()
        await until(lambda: is_asleep(here))

        # Other processes know only what the workflow itself has recorded.
        assert await statuses("w") == ["SUSPENDED", "PENDING"]
        assert await statuses(child_workflow_id("w", 1)) == ["SUSPENDED", "SUSPENDED"]


async def test_a_sleep_that_its_code_gives_up_is_over(url: str) -> None:
    async with Durable(url, drain_timeout=0.0) as durable:

        @durable.workflow
        async def work() -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.0):
                    await durable.sleep(LONG_SECONDS)
            await durable.sleep(LONG_SECONDS)

        await durable.options(workflow_id="w").start_workflow(work)
        await until(lambda: is_asleep(durable))

    assert len(await ends_of_sleeps(url)) == 2


# Stops


@pytest.mark.parametrize("name", ["work", "parent", "grandparent"])
async def test_a_stop_does_not_wait_for_who_sleeps(url: str, name: str) -> None:
    process = Process(url)
    async with asyncio.timeout(30):
        async with process.durable:
            await process.begin(getattr(process, name))

    assert (await row_of(url, "w", "state, attempts")) == ("PENDING", 1)
    assert process.ran == ["before"]


async def test_who_falls_asleep_during_a_stop_is_not_waited_for_either(url: str) -> None:
    gate = Gate()
    durable = Durable(url, drain_timeout=LONG_SECONDS)

    @durable.step
    async def step() -> None:
        await gate.wait()

    @durable.workflow
    async def work() -> None:
        await step()
        await durable.sleep(LONG_SECONDS)

    await durable.engine.start()
    await durable.options(workflow_id="w").start_workflow(work)
    await gate.reached.wait()
    stopping = asyncio.ensure_future(durable.engine.stop())
    await asyncio.sleep(0)
    gate.open()
    async with asyncio.timeout(30):
        await stopping

    assert len(await ends_of_sleeps(url)) == 1


@pytest.mark.parametrize("beside", ["step", "child"])
async def test_a_stop_waits_for_what_is_done_beside_a_sleep(url: str, beside: str) -> None:
    gate = Gate()
    ran = []
    durable = Durable(url, drain_timeout=LONG_SECONDS)

    @durable.step
    async def step(number: int) -> None:
        await gate.wait()
        ran.append(number)

    @durable.workflow
    async def child() -> None:
        await step(0)
        await step(1)

    async def steps() -> None:
        await step(0)
        await step(1)

    @durable.workflow
    async def nap() -> None:
        await durable.sleep(LONG_SECONDS)

    @durable.workflow
    async def work() -> None:
        await asyncio.gather(nap(), child() if beside == "child" else steps())

    await durable.engine.start()
    await durable.options(workflow_id="w").start_workflow(work)
    await gate.reached.wait()
    stopping = asyncio.ensure_future(durable.engine.stop())
    # One turn of the event loop, in which no run is interrupted.
    await asyncio.wait([stopping], timeout=0.05)
    gate.open()
    async with asyncio.timeout(30):
        await stopping

    assert ran == [0, 1]


async def test_a_stop_wakes_a_thread_that_sleeps(url: str) -> None:
    durable = Durable(url, drain_timeout=LONG_SECONDS)
    ended = []

    @durable.workflow(name="work")
    def work() -> None:
        try:
            durable.blocking.sleep(LONG_SECONDS)
        except BaseException as error:
            ended.append(type(error).__name__)
            raise

    async with asyncio.timeout(30):
        async with durable:
            options = durable.blocking.options(workflow_id="w")
            calling = asyncio.ensure_future(in_thread(options.run_workflow, work))
            await until(lambda: is_asleep(durable))
        with pytest.raises(WorkflowInterruptedError):
            await calling

    assert ended == ["RunStopped"]


async def test_a_thread_sleeps_durably_as_well(url: str) -> None:
    async with Durable(url) as durable:

        @durable.workflow
        def work() -> str:
            durable.blocking.sleep(0.02)
            return "awake"

        for _ in range(2):
            options = durable.blocking.options(workflow_id="w")
            assert await in_thread(options.run_workflow, work) == "awake"
        await in_thread(durable.blocking.sleep, 0.0)

    assert len(await ends_of_sleeps(url)) == 1


# Crashes


async def test_who_sleeps_is_not_blamed_for_its_processes_crashes(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A sleeping workflow has shown that it kills no process, and is cleared soon.
    monkeypatch.setattr(takeover, "SUSPECT_SECONDS", LONG_SECONDS)
    monkeypatch.setattr(takeover, "LONGEST_SUSPECT_SECONDS", LONG_SECONDS)
    processes = [Process(url) for _ in range(5)]
    await processes[0].durable.engine.start()
    await processes[0].begin()
    for dying, next_one in itertools.pairwise(processes):
        await kill(dying.durable)
        await next_one.durable.engine.start()
        next_one.durable.engine.recover()
        await until(lambda one=next_one: is_asleep(one.durable))
        await until(lambda: is_cleared_or_no_suspect(url))
    await processes[-1].durable.engine.stop()

    assert await row_of(url, "w", "state, attempts") == ("PENDING", 5)


async def is_cleared_or_no_suspect(url: str) -> bool:
    crashes, at_entry = await row_of(url, "w", "crashes, crashed_at_entry")
    return crashes < 2 or at_entry == -1
