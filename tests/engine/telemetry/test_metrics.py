"""Metrics: counters and histograms of a meter provider."""

from __future__ import annotations

import asyncio
import time

import pytest
from support.asgi import answer, exchange, keyed
from support.executors import Worker, declared_dead, executor_of, is_another, result_of, until
from support.interruption import Gate
from support.telemetry.metrics import Figures

from asgi_durable import Durable, RetryPolicy

pytestmark = pytest.mark.anyio

# The largest expected difference between the database's clock and ours, in seconds.
CLOCKS = 0.01
QUICK = RetryPolicy(max_attempts=3, initial_interval=0.001)


async def test_runs_steps_retries_commits_and_keys_are_counted(url: str) -> None:
    figures = Figures()
    durable = Durable(url, telemetry=figures.telemetry)
    left = [1, 2]

    @durable.step(name="flaky", retry=QUICK)
    async def flaky() -> None:
        if left:
            raise OSError(left.pop())

    @durable.transaction(name="insert")
    async def insert() -> None:
        raise ValueError("refused")

    @durable.workflow(name="pay")
    async def pay() -> None:
        await flaky()
        await insert()

    async def handle(scope, receive, send) -> None:
        with pytest.raises(ValueError, match="refused"):
            await pay()
        await answer(send)

    app = durable.wrap(handle)
    async with durable:
        for _ in range(2):
            await exchange(app, keyed())

    found = figures.read()
    assert found["durable.run.duration"] == {("pay", "ERROR"): 1}
    assert found["durable.step.duration"] == {
        ("flaky", "step", "SUCCESS"): 1,
        ("insert", "transaction", "ERROR"): 1,
    }
    assert found["durable.step.retries"] == {("flaky",): 2}
    assert found["idempotency.requests"] == {("executed",): 1, ("replayed",): 1}
    assert found["durable.commit.writes"][()] >= 3
    assert found["durable.store.duration"] == {("commit",): found["durable.commit.writes"][()]}
    assert found["http.server.request.duration"] == {("POST", "http", 200): 2}
    # A request that is handled at once has no lag.
    assert "durable.resume.lag" not in found


async def test_how_long_duplicates_wait_is_told_by_what_comes_of_it(url: str) -> None:
    figures, gate = Figures(), Gate()
    durable = Durable(url, telemetry=figures.telemetry)

    async def handle(scope, receive, send) -> None:
        await gate.wait()
        await answer(send)

    app = durable.wrap(handle)
    async with durable:
        first = asyncio.create_task(exchange(app, keyed(), b"{}"))
        await gate.reached.wait()
        duplicate = asyncio.create_task(exchange(app, keyed(), b"{}"))
        waits_since = time.monotonic()
        running = durable.engine.running()
        await until(running.requests._duplicates.total)
        gate.open()
        await asyncio.gather(first, duplicate)
        waited = time.monotonic() - waits_since
        # It got its response at once, and did not wait.
        await exchange(app, keyed(), b"{}")

    (point,) = [point for _, point in figures.points("idempotency.wait.duration")]
    assert (point.count, dict(point.attributes)) == (1, {"idempotency.outcome": "waited"})
    assert 0 < point.sum <= waited


async def test_what_is_gone_on_with_counts_as_a_recovery(url: str) -> None:
    figures = Figures()
    async with Worker(url, waits=True) as first:
        await first.begin("w")

    async with Worker(url, telemetry=figures.telemetry) as second:
        await result_of(second, "w")

    found = figures.read()
    assert found["durable.run.recoveries"] == {("work",): 1}
    assert found["durable.run.duration"] == {("work", "SUCCESS"): 1}


async def test_the_lag_is_how_long_a_workflow_was_nobodys(url: str) -> None:
    figures = Figures()
    async with Worker(url, waits=True) as first:
        await first.begin("w")
        leaves_at = time.monotonic()
    left_at = time.monotonic()
    await until(lambda: time.monotonic() - left_at > 0.2)

    starts_at = time.monotonic()
    async with Worker(url, telemetry=figures.telemetry) as second:
        await result_of(second, "w")
    ended_at = time.monotonic()

    ((_, lag),) = figures.points("durable.resume.lag")
    assert (dict(lag.attributes), lag.count) == ({"durable.workflow.name": "work"}, 1)
    assert starts_at - left_at - CLOCKS <= lag.sum <= ended_at - leaves_at + CLOCKS


async def test_a_lost_lease_is_counted_and_its_runs_are_interrupted(url: str) -> None:
    figures, others = Figures(), Figures()
    async with Worker(url, waits=True, telemetry=figures.telemetry) as stopped:
        await stopped.begin("w")
        old_id = executor_of(stopped).id
        async with Worker(url, telemetry=others.telemetry) as other:
            async with declared_dead(stopped):
                await result_of(other, "w")
            await is_another(stopped, old_id)

    found, of_other = figures.read(), others.read()
    assert found["durable.lease.losses"] == {(): 1}
    assert found["durable.run.duration"] == {("work", "INTERRUPTED"): 1}
    assert of_other["durable.resume.lag"] == {("work",): 1}
