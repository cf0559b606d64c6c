"""The runs of this process: at most one for each workflow id."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from asgi_durable.concurrency.once import Once
from asgi_durable.engine.process.log_text import workflows_text
from asgi_durable.engine.process.recorded_errors import infrastructure_error_in
from asgi_durable.engine.runs.frame import Frame, current_frame
from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.runs.run_end import RunEnd
from asgi_durable.engine.runs.suspension import asleep_until_us
from asgi_durable.engine.stopping import (
    CancelledElsewhereError,
    Interrupted,
    OwnedElsewhereError,
    RunStopped,
)
from asgi_durable.errors import WorkflowInterruptedError

__all__ = ["ActiveRuns", "wait_for"]

logger = logging.getLogger(__name__)

# How long a cancelled run may take to clean up before it is left to itself.
CANCEL_TIMEOUT_SECONDS = 5.0

ResultT = TypeVar("ResultT")


class ActiveRuns:
    """Owns the tasks of all runs.

    A caller that waits for a run may be cancelled; the run's task belongs to the engine, and
    continues.

    Attributes:
        on_interrupted: Called with every run that ended without an outcome.
        on_lost: Called when a run was lost with its event loop.
        on_ended: Called with every run that is over, with or without an outcome.
    """

    def __init__(self) -> None:
        self.on_interrupted: Callable[[Run, Interrupted], None] = lambda *_: None
        self.on_lost: Callable[[], None] = lambda: None
        self.on_ended: Callable[[Run], None] = lambda _: None
        self._runs: dict[str, Run] = {}
        self._tasks: dict[asyncio.Task[None], Run] = {}
        self._launched: list[set[str]] = []
        self._cancelled: set[Run] = set()
        self._closed = False
        self._is_draining = False
        self._drain_callbacks: dict[Callable[[], None], asyncio.AbstractEventLoop] = {}
        # One method object for all tasks.
        self._on_task_done = self._on_done

    def find(self, workflow_id: str) -> Run | None:
        """Return the run of this workflow, ``None`` if this process has none."""
        run = self._runs.get(workflow_id)
        if run is not None and run.loop.is_closed():
            # Its event loop was closed without a shutdown; the records of the run are in the log.
            self.release(run)
            self.on_lost()
            return None
        return run

    def ids_of_others(self, executor_id: str) -> frozenset[str]:
        """Return the ids of runs that write under any other name; callable on any thread."""
        return frozenset(
            run.workflow_id for run in list(self._runs.values()) if run.executor_id != executor_id
        )

    @contextmanager
    def watching_launches(self) -> Iterator[set[str]]:
        """Yield a set that collects the id of every run that is launched meanwhile."""
        launched: set[str] = set()
        self._launched.append(launched)
        try:
            yield launched
        finally:
            self._launched = [other for other in self._launched if other is not launched]

    def launch(
        self,
        run: Run,
        drive: Coroutine[Any, Any, RunEnd],
        *,
        context: contextvars.Context | None = None,
    ) -> bool:
        """Start a run's task; return False if its workflow has another run meanwhile.

        Args:
            run: The run.
            drive: Runs the workflow and returns how it ended.
            context: Context variables to run with; a copy of the caller's by default.

        Raises:
            WorkflowInterruptedError: The engine has stopped.
        """
        # One atomic call, as threads with event loops of their own may launch at once.
        if self._closed or self._runs.setdefault(run.workflow_id, run) is not run:
            drive.close()
            if self._closed:
                raise WorkflowInterruptedError(run.workflow_id, "the engine has stopped")
            return False
        for launched in self._launched:
            launched.add(run.workflow_id)
        task = run.loop.create_task(self._supervise(run, drive), context=context)
        run.begin(task, drive)
        # The event loop itself holds tasks only weakly.
        self._tasks[task] = run
        task.add_done_callback(self._on_task_done)
        return True

    def release(self, run: Run) -> None:
        """Let calls attach to the workflow by its log; the run's task may have more to do."""
        if self._runs.get(run.workflow_id) is run:
            del self._runs[run.workflow_id]

    async def drain(self, timeout_seconds: float) -> None:
        """Wait for the tasks of this event loop, then interrupt the runs that are left.

        An interrupted run records nothing more; its workflow stays PENDING. A run that sleeps is
        interrupted at once: it loses nothing.
        """
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + timeout_seconds
        self._is_draining = True
        here = asyncio.get_running_loop()
        for callback, loop in list(self._drain_callbacks.items()):
            if loop is here:
                callback()
        try:
            for run in self._tasks_here().values():
                self.on_asleep(run)
            while (tasks := self._tasks_here()) and (left := give_up_at - clock()) > 0:
                await asyncio.wait(tasks, timeout=left)
        finally:
            self._is_draining = False
        # In a loop: an interrupted run may have launched another one.
        while tasks := self._tasks_here():
            interrupted = workflows_text(run.workflow for run in tasks.values())
            logger.info("Interrupted, to be continued: %s", interrupted)
            for run in tasks.values():
                _interrupt(run)
            _, stuck = await asyncio.wait(tasks, timeout=CANCEL_TIMEOUT_SECONDS)
            for task in stuck:
                self._abandon(task, tasks[task])

    @contextlib.contextmanager
    def calling_on_drain(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call a function on this event loop when a drain begins, or now during one."""
        self._drain_callbacks[callback] = asyncio.get_running_loop()
        try:
            if self._is_draining:
                callback()
            yield
        finally:
            del self._drain_callbacks[callback]

    def on_asleep(self, run: Run) -> None:
        """Interrupt a run that sleeps, and the runs it waits for, if the engine stops."""
        caller = run.caller
        if not self._is_draining or asleep_until_us(run) is None:
            return
        # Its caller decides if there is one, which may be busy with another call.
        if caller is None or caller.stopped is not None or caller.done.is_set():
            _interrupt_all(run)

    def drop_others(self, executor_id: str) -> None:
        """Interrupt the runs that write under any other name; callable on any thread.

        They could record nothing more, and their callers learn the new owner.
        """
        for run in list(self._tasks.values()):
            if run.executor_id != executor_id:
                with contextlib.suppress(RuntimeError):  # its event loop has ended
                    run.loop.call_soon_threadsafe(_drop, run, OwnedElsewhereError(run.workflow_id))

    def ids_with_callers(self) -> frozenset[str]:
        """Return the ids of all runs and of their callers; callable on any thread."""
        workflows = [run.workflow for run in list(self._tasks.values())]
        callers = (workflow.parent_id for workflow in workflows if workflow.awaited)
        return frozenset(workflow.workflow_id for workflow in workflows).union(
            caller for caller in callers if caller is not None
        )

    def cancel(self, workflow_ids: Iterable[str]) -> None:
        """Interrupt the runs of cancelled workflows, and of those they have called meanwhile.

        Callable on any thread.
        """
        runs = list(self._tasks.values())
        ids, found = set[str](), set(workflow_ids)
        while not found <= ids:
            ids |= found
            found = {
                r.workflow_id for r in runs if r.workflow.awaited and r.workflow.parent_id in ids
            }
        for run in runs:
            if run.workflow_id not in ids:
                continue
            if run.loop is _running_loop():
                # Now: the run may be cancelling itself, and continue without any await.
                self._cancel(run)
            else:
                with contextlib.suppress(RuntimeError):  # its event loop has ended
                    run.loop.call_soon_threadsafe(self._cancel, run)

    def _cancel(self, run: Run) -> None:
        # Once, however often it is cancelled: its code may need time to clean up.
        if run in self._cancelled or run.task not in self._tasks:
            return
        self._cancelled.add(run)
        _drop(run, CancelledElsewhereError(run.workflow_id))
        run.loop.call_later(CANCEL_TIMEOUT_SECONDS, self._leave_cancelled, run)

    def _leave_cancelled(self, run: Run) -> None:
        """Publish the end of a cancelled run whose code does not end."""
        if run.stopped is None or run.done.is_set():
            return
        logger.warning("The run of cancelled workflow %s does not end", run.workflow_id)
        self.release(run)
        run.leave_unfinished(run.stopped)
        self.on_ended(run)

    def close(self) -> None:
        """Launch no more runs."""
        self._closed = True

    def _on_done(self, task: asyncio.Task[None]) -> None:
        run = self._tasks.pop(task, None)
        if run is None:
            return
        self._cancelled.discard(run)
        run.drop_task()
        if run.done.is_set():
            return
        # Cancelled before its first turn: `_supervise` has not begun.
        run.drop_drive()
        cancelled = WorkflowInterruptedError(run.workflow_id, "its task was cancelled")
        self._publish(run, run.stopped or Interrupted(cancelled, retry_here=True))

    def _publish(self, run: Run, ending: RunEnd) -> None:
        self.release(run)
        run.finish(ending)
        self.on_ended(run)
        if isinstance(ending, Interrupted):
            self.on_interrupted(run, ending)

    def _tasks_here(self) -> dict[asyncio.Task[None], Run]:
        loop = asyncio.get_running_loop()
        return {task: run for task, run in list(self._tasks.items()) if run.loop is loop}

    def _abandon(self, task: asyncio.Task[None], run: Run) -> None:
        logger.warning("The run of workflow %s does not end; left to itself", run.workflow_id)
        self._tasks.pop(task, None)
        self._cancelled.discard(run)
        self.release(run)
        if run.stopped is not None:
            run.finish(run.stopped)

    async def _supervise(self, run: Run, drive: Coroutine[Any, Any, RunEnd]) -> None:
        current_frame.set(Frame(run.services, run))
        ending: RunEnd | None = None
        try:
            ending = await drive
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            outage = infrastructure_error_in(error)
            if outage is not None:
                run.stop(outage, retry_here=True)
            # RunStopped, perhaps in the exception group of a task group. Or a defect, or an
            # exception that must not be recorded: no outcome, and no further attempt.
            if run.stopped is None and not isinstance(error, RunStopped):
                logger.exception("The run of workflow %s failed", run.workflow_id)
                reason = f"its code raised {type(error).__name__}"
                run.stop(WorkflowInterruptedError(run.workflow_id, reason))
        finally:
            # However this ends, the callers that wait must be woken.
            if ending is None:
                cancelled = WorkflowInterruptedError(run.workflow_id, "its task was cancelled")
                ending = run.stopped or Interrupted(cancelled, retry_here=True)
            self._publish(run, ending)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _interrupt(run: Run) -> None:
    # Invariant: stopped before cancelled, so that nothing is recorded of what its code does in an
    # `except` or a `finally`.
    run.stop(WorkflowInterruptedError(run.workflow_id, "the engine stops"))
    run.cancel()


def _interrupt_all(run: Run) -> None:
    """Interrupt a run and the runs that it waits for."""
    for awaited in run.awaited:
        _interrupt_all(awaited)
    _interrupt(run)


def _drop(run: Run, error: OwnedElsewhereError) -> None:
    # Invariant: stopped before cancelled, as at the end of the engine.
    run.stop(error)
    run.cancel()


async def wait_for(run: Run, signal: Once[ResultT], loop: asyncio.AbstractEventLoop) -> ResultT:
    """Wait on *loop* for a signal of a run; cancelling the waiter does not affect the run.

    The run may live on another event loop, where an application has no lifespan.

    Raises:
        WorkflowInterruptedError: The other event loop ended.
    """
    if run.loop is loop:
        return await signal.wait()
    waiting = signal.wait()
    try:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(waiting, run.loop))
    except (RuntimeError, asyncio.CancelledError):
        waiting.close()
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise WorkflowInterruptedError(run.workflow_id, "its event loop ended") from None
