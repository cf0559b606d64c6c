"""The runs of this process: at most one for each workflow id."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from asgi_durable.engine.frame import Frame, current_frame
from asgi_durable.engine.run import Ending, Interrupted, Run, RunStopped
from asgi_durable.errors import WorkflowInterruptedError

__all__ = ["ActiveRuns", "wait_for"]

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


class ActiveRuns:
    """Owns the tasks of all runs.

    Whoever waits for a run may be cancelled; the run's task is the engine's and goes on.

    Attributes:
        on_interrupted: Told of every run that ended without an outcome.
    """

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._launched: set[str] = set()
        self.on_interrupted: Callable[[Run, Interrupted], None] = lambda *_: None

    def find(self, workflow_id: str) -> Run | None:
        """Return the run of this workflow, ``None`` if this process has none."""
        run = self._runs.get(workflow_id)
        if run is not None and run.loop.is_closed():
            # Its event loop went away without a word; what it recorded is in the log.
            del self._runs[workflow_id]
            return None
        return run

    def watch_launches(self) -> set[str]:
        """Return a set that from now on gets the id of every run that is launched."""
        self._launched = set()
        return self._launched

    def launch(
        self,
        run: Run,
        drive: Coroutine[Any, Any, Ending],
        *,
        context: contextvars.Context | None = None,
    ) -> None:
        """Start a run's task.

        Args:
            run: The run; no other run of its workflow may be active.
            drive: Runs the workflow and returns how it ended.
            context: Context variables to run with; a copy of the caller's by default.
        """
        self._runs[run.workflow_id] = run
        self._launched.add(run.workflow_id)
        task = run.loop.create_task(self._supervise(run, drive), context=context)
        # The event loop itself holds tasks only weakly.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def release(self, run: Run) -> None:
        """Let the workflow be attached to by its log; the run's task may have more to do."""
        if self._runs.get(run.workflow_id) is run:
            del self._runs[run.workflow_id]

    async def drain(self, timeout_seconds: float) -> None:
        """Wait for the tasks of this event loop, then cancel what still runs.

        A cancelled run records nothing; its workflow stays PENDING.
        """
        loop = asyncio.get_running_loop()
        tasks = {task for task in self._tasks if task.get_loop() is loop}
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=timeout_seconds)
        for task in late:
            task.cancel()
        if late:
            logger.info("%d runs are interrupted and will be continued", len(late))
            await asyncio.wait(late)

    async def _supervise(self, run: Run, drive: Coroutine[Any, Any, Ending]) -> None:
        ending: Ending = Interrupted(
            WorkflowInterruptedError(run.workflow_id, "its task was cancelled"), goes_on=True
        )
        current_frame.set(Frame(run.services, run))
        try:
            ending = await drive
        except RunStopped:
            ending = run.stopped or ending
        except Exception as error:  # a defect of the engine must not leave anybody waiting
            if run.stopped is None:
                logger.exception("The run of workflow %s failed", run.workflow_id)
            ending = run.stopped or Interrupted(error)
        finally:
            # Also for cancellation and KeyboardInterrupt: nobody may wait for ever.
            self.release(run)
            run.finish(ending)
            if isinstance(ending, Interrupted):
                self.on_interrupted(run, ending)


async def wait_for(run: Run, future: asyncio.Future[ResultT]) -> ResultT:
    """Wait for a future of a run; the waiter's cancellation does not touch the run.

    The run may live on another event loop, where an application has no lifespan.
    """
    if run.loop is asyncio.get_running_loop():
        return await asyncio.shield(future)

    async def wait_there() -> ResultT:
        return await asyncio.shield(future)

    try:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(wait_there(), run.loop))
    except RuntimeError:
        # The other loop closed between the look and the call.
        raise WorkflowInterruptedError(run.workflow_id, "its event loop was closed") from None
