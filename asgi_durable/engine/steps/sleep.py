"""A durable sleep: its end is recorded, so no restart makes it longer."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from asgi_durable.codec.typed.digests import DIGEST_BYTES, ArgumentDigest
from asgi_durable.concurrency.home_loop import require_asyncio
from asgi_durable.engine.replay.result_order import end_of_sleep, sleep_output
from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.runs.suspension import seconds_until
from asgi_durable.errors import DurableUsageError
from asgi_durable.storage.records import SLEEP

__all__ = ["checked_seconds", "plain_sleep", "run_sleep"]

# No database can hold the end of a longer sleep.
LONGEST_SECONDS = 1000 * 366 * 24 * 3600.0
# How often a sleep looks at the clock: it may be set, and a machine may be suspended.
LONGEST_NAP_SECONDS = 60.0
# The recorded end counts, whatever the code asks for in a replay: it may compute the seconds from
# the time now.
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
    """Sleep until the recorded end of a sleep, or record the end of a new one."""
    values, log = run.services.registry.values, run.log
    recorded = log.step_at(number, SLEEP, _DIGEST)
    if recorded is None:
        now_us = time.time_ns() // 1000
        output = sleep_output(values, log.next_time_us() - now_us)
        begins = log.new_record(number, SLEEP, _DIGEST.value, output=output)
        ends_at_us = now_us + round(seconds * 1_000_000)
        recorded = replace(begins, finished_at_us=ends_at_us)
        run.submit_step(recorded)
    ends_at_us = end_of_sleep(values, recorded)
    log.expect_result(number, ends_at_us)
    try:
        # Invariant: durable before the sleep begins. However often it is interrupted, it ends at
        # the time that was recorded first.
        await run.writes.wait_durable()
        await _sleep_until(run, number, recorded.finished_at_us)
        await log.wait_for_turn(number, ends_at_us)
    except BaseException:
        log.forget_result(number)
        raise
    finally:
        log.finish_call()
        # However the sleep ended, the code continues; a stopped run has no further span.
        if run.stopping.check() is None:
            run.continue_span()


async def _sleep_until(run: Run, number: int, ends_at_us: int) -> None:
    sleeping = run.sleeps()
    while (left := seconds_until(ends_at_us)) > 0:
        await sleeping.nap(number, ends_at_us, min(left, LONGEST_NAP_SECONDS))
        run.stopping.raise_if_stopped()
