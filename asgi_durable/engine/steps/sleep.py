"""A durable sleep: when it ends is recorded, so nobody sleeps longer than was meant."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from asgi_durable.codec.typed.digests import DIGEST_BYTES, ArgumentDigest
from asgi_durable.concurrency.home_loop import require_asyncio
from asgi_durable.engine.replay.recorded_calls import recorded_step
from asgi_durable.engine.replay.result_order import (
    end_of_sleep,
    expect_result_at,
    forget_result,
    in_turn,
    sleep_output,
)
from asgi_durable.engine.runs.spans import go_on
from asgi_durable.engine.runs.suspension import seconds_until, sleeping_of
from asgi_durable.errors import DurableUsageError
from asgi_durable.storage.records import SLEEP

if TYPE_CHECKING:
    from asgi_durable.engine.runs.run import Run

__all__ = ["checked_seconds", "plain_sleep", "run_sleep"]

# Nobody lives to see the end of a longer one, and no database can hold it.
LONGEST_SECONDS = 1000 * 366 * 24 * 3600.0
# How often the clock is looked at: it may be set, and a machine may be suspended.
LONGEST_NAP_SECONDS = 60.0
# Its end counts as recorded, whatever the code says later: it may be made of the time now.
_DIGEST = ArgumentDigest(bytes(DIGEST_BYTES))


def checked_seconds(seconds: float) -> float:
    """Return a number of seconds to sleep.

    Raises:
        DurableUsageError: It is negative, no number, or longer than a thousand years.
    """
    if not 0 <= seconds <= LONGEST_SECONDS:
        msg = f"the seconds of a sleep must be 0 or more, and have an end; got {seconds!r}"
        raise DurableUsageError(msg)
    return seconds


async def plain_sleep(seconds: float) -> None:
    """Sleep outside of every run.

    Raises:
        DurableUsageError: The event loop is not one of asyncio's.
    """
    require_asyncio()
    await asyncio.sleep(seconds)


async def run_sleep(run: Run, number: int, seconds: float) -> None:
    """Sleep, or what is left of a sleep that was recorded before."""
    values = run.services.registry.values
    recorded = recorded_step(run, number, SLEEP, _DIGEST)
    if recorded is None:
        now_us = time.time_ns() // 1000
        output = sleep_output(values, run.next_time_us() - now_us)
        begins = run.step_record(number, SLEEP, _DIGEST.value, output=output, error=None)
        ends_at_us = now_us + round(seconds * 1_000_000)
        recorded = replace(begins, finished_at_us=ends_at_us)
        run.submit_step(recorded)
    ends_at_us = end_of_sleep(values, recorded)
    expect_result_at(run, number, ends_at_us)
    try:
        # Invariant: durable before it begins. However often it is interrupted, it ends when it
        # was to end at first.
        await run.settle()
        await _sleep_until(run, number, recorded.finished_at_us)
        await in_turn(run, number, ends_at_us)
    except BaseException:
        forget_result(run, number)
        raise
    finally:
        run.note_settled()
        # Whatever has ended the sleep, its code goes on; of what is stopped nothing is seen.
        if run.interruption() is None:
            go_on(run)


async def _sleep_until(run: Run, number: int, ends_at_us: int) -> None:
    sleeping = sleeping_of(run)
    while (left := seconds_until(ends_at_us)) > 0:
        woken: asyncio.Future[None] = run.loop.create_future()
        timer = run.loop.call_later(min(left, LONGEST_NAP_SECONDS), sleeping.wake_one, number)
        sleeping.sleeps[number] = (ends_at_us, woken)
        sleeping.look_soon(run)
        try:
            await woken
        finally:
            timer.cancel()
            del sleeping.sleeps[number]
        run.refuse_if_stopped()
