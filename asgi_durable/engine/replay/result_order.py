"""The order in which the code of a run sees its results: the same on every replay.

Code may ask which of several calls ended first (``asyncio.wait(…, FIRST_COMPLETED)``,
``asyncio.as_completed``). Each record has a time, later than the times of all records before it.
A replay returns recorded results in the order of these times, one after the other, and lets the
code react to each before the next. A first execution does the same where two calls end at almost
the same moment.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from typing import Any

from asgi_durable.codec.values import Values
from asgi_durable.errors import DecodeError
from asgi_durable.storage.records import SLEEP, StepRecord, WorkflowRecord

__all__ = [
    "ResultOrder",
    "end_of_child",
    "end_of_sleep",
    "latest_time_us",
    "recorded_order",
    "sleep_output",
]

logger = logging.getLogger(__name__)

# How many iterations of the event loop the code gets to react to a result. `asyncio.wait` needs
# three, and each task group, `gather` or task around it two more.
REACTION_ITERATIONS = 8
# How long results wait for a recorded result that the code does not ask for.
LONGEST_WAIT_SECONDS = 1.0


class ResultOrder:
    """Returns the results of one run in the order of their times.

    Args:
        workflow_id: The run's workflow, for log lines.
        loop: The run's event loop.
        recorded: Time and number of each result of earlier executions, in order.
    """

    __slots__ = (
        "_due",
        "_has_passed",
        "_is_counting",
        "_iterations_left",
        "_last_task",
        "_loop",
        "_recorded",
        "_timer",
        "_waiting",
        "_workflow_id",
    )

    def __init__(
        self,
        workflow_id: str,
        loop: asyncio.AbstractEventLoop,
        recorded: Iterable[tuple[int, int]] = (),
    ) -> None:
        self._workflow_id = workflow_id
        self._loop = loop
        self._recorded = deque(recorded)
        # The times of results that this execution has made, or expects, by their numbers.
        self._due: dict[int, int] = {}
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._last_task: asyncio.Task[Any] | None = None
        self._iterations_left = 0
        self._is_counting = False
        self._timer: asyncio.TimerHandle | None = None
        self._has_passed = False

    def expect(self, number: int, time_us: int) -> None:
        """Let later results wait for a result that has its time already."""
        self._due[number] = time_us

    def time_of(self, number: int) -> int | None:
        """Return the time that a result already has, ``None`` if it has none."""
        return self._due.get(number)

    def forget(self, number: int) -> None:
        """Let no result wait for this one: its call was cancelled, or its result is not used."""
        self._due.pop(number, None)
        self._waiting.pop(number, None)
        if self._recorded and self._recorded[0][1] == number:
            self._recorded.popleft()
        elif self._recorded:
            self._recorded = deque(entry for entry in self._recorded if entry[1] != number)
        self._count()

    def may_pass(self, number: int, time_us: int) -> bool:
        """Tell whether a result may be returned now, without waiting."""
        first = self._first()
        if first is not None and first[1] != number and first < (time_us, number):
            return False
        # The task that got the last result has reacted to it, as it asks for another one.
        return not self._iterations_left or asyncio.current_task() is self._last_task

    async def wait(self, number: int, time_us: int) -> None:
        """Wait until all earlier results are returned, and the code has reacted to them."""
        self._due.setdefault(number, time_us)
        turn = self._waiting[number] = self._loop.create_future()
        self._count()
        try:
            await turn
        except BaseException:
            self.forget(number)
            raise

    def passed(self, number: int, *, has_other_calls: bool) -> None:
        """Record that a result is returned to the current task.

        Args:
            number: The number of its call.
            has_other_calls: True if other calls of the run are under way.
        """
        if self._recorded and self._recorded[0][1] == number:
            self._recorded.popleft()
        self._due.pop(number, None)
        self._has_passed = True
        if self._recorded or self._due or has_other_calls:
            self._last_task = asyncio.current_task()
            self._iterations_left = REACTION_ITERATIONS
            self._count()

    def end(self) -> None:
        """Let every waiting call continue: the run is stopped, and its code must see that."""
        self._recorded.clear()
        self._due.clear()
        self._last_task = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            _set(self._waiting.popitem()[1])

    def _first(self) -> tuple[int, int] | None:
        """Return the time and number of the earliest result that is not returned yet."""
        first = self._recorded[0] if self._recorded else None
        if self._due:
            # A copy: `def` transactions set their times in their threads.
            due = min((time_us, number) for number, time_us in list(self._due.items()))
            return due if first is None or due < first else first
        return first

    def _count(self) -> None:
        if not self._is_counting and (self._waiting or self._iterations_left):
            self._is_counting = True
            self._loop.call_soon(self._next_iteration)

    def _next_iteration(self) -> None:
        self._is_counting = False
        if self._iterations_left:
            self._iterations_left -= 1
            self._count()
            return
        self._last_task = None
        first = self._first()
        turn = self._waiting.pop(first[1], None) if first is not None else None
        if turn is not None:
            # The call that it wakes comes to `passed` in the next iteration.
            self._iterations_left = REACTION_ITERATIONS
            _set(turn)
            self._count()
        elif self._waiting and self._recorded and self._timer is None:
            self._has_passed = False
            self._timer = self._loop.call_later(LONGEST_WAIT_SECONDS, self._give_up)

    def _give_up(self) -> None:
        """Continue without an order if the code does not ask for the result that comes next."""
        self._timer = None
        if not self._waiting or not self._recorded:
            return
        if not self._has_passed:
            logger.warning(
                "Workflow %s: its code has not come to entry %d of its log, which was recorded "
                "first; the results of its other calls come in any order from here on",
                self._workflow_id,
                self._recorded[0][1],
            )
            self._recorded.clear()
        self._count()


def recorded_order(
    values: Values, steps: Iterable[StepRecord], children: Iterable[WorkflowRecord]
) -> list[tuple[int, int]]:
    """Return the time and number of each result in a log, in order.

    The time of a sleep is when it ends.
    """
    order = [(_time_of(values, step), step.step_number) for step in steps if step.is_finished]
    order += [
        (end_of_child(child), child.parent_step)
        for child in children
        if child.awaited and child.is_final and child.parent_step is not None
    ]
    order.sort()
    return order


def latest_time_us(steps: Iterable[StepRecord], children: Iterable[WorkflowRecord]) -> int:
    """Return the time of the latest record in a log, 0 if there is none."""
    times = [step.finished_at_us for step in steps if step.name != SLEEP]
    times += [end_of_child(child) for child in children if child.is_final]
    return max(times, default=0)


def end_of_child(child: WorkflowRecord) -> int:
    """Return when a workflow ended, by the clock of the process that ended it.

    The clock may be behind, but the workflow did not end before its call.
    """
    return max(child.created_at_us, child.updated_at_us)


def sleep_output(values: Values, ahead_us: int) -> bytes:
    """Return the output of a sleep's record: how far its log is ahead of the clock.

    The sleep ends by the clock; its place among the results follows the times of the log.
    """
    return values.write(ahead_us or None)[0]


def end_of_sleep(values: Values, sleep: StepRecord) -> int:
    """Return when a sleep ends, in the times of its log."""
    try:
        return sleep.finished_at_us + (values.read(sleep.output or b"null") or 0)
    except DecodeError:
        return sleep.finished_at_us


def _time_of(values: Values, step: StepRecord) -> int:
    return end_of_sleep(values, step) if step.name == SLEEP else step.finished_at_us


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
