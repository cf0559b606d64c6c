"""Runs the code of an ended workflow again, for its effects on the objects of its request.

A route's workflow sets the status on the framework's ``Response``, adds background tasks, or fills
the session. None of that is recorded, as such objects belong to one attempt of the request. If the
workflow has ended and its request has not, the next attempt has new objects: the code runs again
over its log, and does the same to them. Its outcome stays the recorded one.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from asgi_durable.engine.process.definitions import WorkflowDefinition
from asgi_durable.engine.process.recorded_errors import infrastructure_error_in
from asgi_durable.engine.replay.result_order import end_of_child
from asgi_durable.engine.replay.run_log import END_OF_LOG
from asgi_durable.engine.runs.call import Call
from asgi_durable.engine.runs.conflicts import find_conflict
from asgi_durable.engine.runs.frame import Frame, current_frame
from asgi_durable.engine.runs.outbox import Outbox
from asgi_durable.engine.runs.pending_writes import PendingWrites
from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.runs.run_end import Completed, completed, raise_if_cancelled
from asgi_durable.engine.runs.runner import refuse_missing_injected
from asgi_durable.engine.runs.services import Services
from asgi_durable.engine.stopping import RunStopped
from asgi_durable.engine.workflows.result_waiters import ResultWaiters
from asgi_durable.errors import (
    DecodeError,
    EncodeError,
    NonDeterministicWorkflowError,
    StorageError,
    WorkflowInterruptedError,
)
from asgi_durable.storage.records import (
    StoredRun,
    WorkflowRecord,
    WorkflowState,
)
from asgi_durable.storage.writes import Outcome, Write

__all__ = ["EndedRun", "Reruns", "is_repeated"]

logger = logging.getLogger(__name__)


class EndedRun(Run):
    """A run over the whole log of an ended workflow: it replays, and can record nothing.

    Args:
        services: The parts that all runs share.
        stored: The log.
        caller: The run that called the workflow; this one stops with it.
    """

    def __init__(self, services: Services, stored: StoredRun, caller: Run) -> None:
        super().__init__(
            services,
            stored.workflow,
            caller.loop,
            executor_id=caller.executor_id,
            replays_for=caller,
        )
        self.load(stored)
        self.writes = _RefusedWrites(services, self)
        self.outbox = _RecordedStarts(self.log, self.stopping, services.registry, self.executor_id)


class _RefusedWrites(PendingWrites):
    """The writes of an ended workflow: there are none."""

    __slots__ = ("_log",)

    def __init__(self, services: Services, run: Run) -> None:
        super().__init__(run.workflow_id, services.committer, run.loop, run.stopping)
        self._log = run.log

    def submit(self, write: Write) -> None:
        raise self._refused(write)

    async def commit(self, write: Write) -> Outcome:
        raise self._refused(write)

    def _refused(self, write: Write) -> Exception:
        return self._log.divergence(self._log.calls, END_OF_LOG, f"for {type(write).__name__}")


class _RecordedStarts(Outbox):
    """The starts of an ended workflow, which were committed with its end."""

    __slots__ = ()

    def add(self, workflow: WorkflowRecord) -> None:
        """Raise if another call than the start of this workflow is recorded at its number.

        The number need not be recorded: the last starts of a workflow are in the commit of its
        end alone. Then the started workflow is there, unless it was deleted since.
        """
        log, number = self._log, workflow.parent_step or 0
        step = log.steps.get(number)
        if step is not None:
            log.check_step(step, *self.recorded_as(workflow))
        elif number in log.children:
            definition = self._registry.workflow(workflow.name)
            log.child_at(number, definition, workflow.input or b"{}")
        log.forget_result(number)


class Reruns:
    """Runs ended workflows again over their logs.

    Args:
        services: The parts that all runs share.
        result_waiters: Waits for workflows that other executors run.
    """

    def __init__(self, services: Services, result_waiters: ResultWaiters) -> None:
        self._services = services
        self._result_waiters = result_waiters

    async def repeat(self, call: Call, parent: Run, number: int, workflow_id: str) -> None:
        """Run the code of a workflow that has succeeded again, with the objects of this call.

        Only for the caller that started it: a call that attaches to a workflow by its id gets the
        result, and no effects on its own objects.

        Raises:
            RunStopped: The code does not fit the log; the caller's run must not continue.
        """
        stored = await self._load(parent, workflow_id)
        workflow = stored.workflow
        if (workflow.parent_id, workflow.parent_step) != (parent.workflow_id, number):
            return
        try:
            arguments = call.definition.bind_input(
                workflow.input or b"{}", call.args, call.kwargs, is_first=False
            )
        except DecodeError as error:
            raise parent.stop(error) from error
        failure = await self._run(EndedRun(self._services, stored, parent), call, arguments)
        if failure is not None:
            retry_here = infrastructure_error_in(failure) is not None
            raise parent.stop(failure, retry_here=retry_here) from failure
        # A cancellation counts, whatever the application's code returned after it.
        parent.stopping.raise_if_stopped()

    async def _load(self, parent: Run, workflow_id: str) -> StoredRun:
        try:
            stored = await self._services.storage.load_runs([workflow_id])
        except StorageError as error:
            raise parent.stop(error, retry_here=True) from error
        if not stored:
            raise parent.stop(WorkflowInterruptedError(workflow_id, "its row was deleted"))
        return stored[0]

    async def _run(self, run: EndedRun, call: Call, arguments: dict[str, Any]) -> Exception | None:
        """Run the code in a task of its own; return why its caller must not continue."""
        workflow_id = run.workflow_id
        try:
            return await call.loop.create_task(_call(run, call.definition, arguments))
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if run.stopping.check() is not None or (current is not None and current.cancelling()):
                raise
            return WorkflowInterruptedError(workflow_id, "its code raised CancelledError")
        finally:
            # Invariant: not closed. Tasks that the code has left behind make no plain calls.
            run.stop(WorkflowInterruptedError(workflow_id, "it was only run again"))

    # Calls of the code of an ended workflow

    async def result(self, call: Call, parent: EndedRun, number: int) -> Any:
        """Return the recorded result of a workflow, or raise its error."""
        record = await self._recorded_call(call, parent, number)
        if record is None:
            raise parent.stop(WorkflowInterruptedError(parent.workflow_id, "a row was deleted"))
        end = completed(record)
        if not record.is_final:
            end = await self._result_waiters.wait(record.workflow_id, in_run=True)
        await parent.log.finish_in_turn(number, end_of_child(record))
        raise_if_cancelled(end, record.workflow_id)
        if is_repeated(call, end):
            await self.repeat(call, parent, number, record.workflow_id)
        return parent.log.outcome(call.definition, end.output, end.error)

    async def start(self, call: Call, parent: EndedRun, number: int) -> str:
        """Return the id of a workflow that was started."""
        record = await self._recorded_call(call, parent, number)
        parent.log.finish_call()
        return record.workflow_id if record is not None else call.options.workflow_id or ""

    async def _recorded_call(
        self, call: Call, parent: EndedRun, number: int
    ) -> WorkflowRecord | None:
        """Return the row of a workflow that was called, ``None`` if it was deleted."""
        definition, workflow_id = call.definition, call.options.workflow_id
        definition.prepare()
        data = definition.encode_input(call.args, call.kwargs)
        if definition.unrecorded:
            refuse_missing_injected(call)
        if workflow_id is None:
            return parent.log.child_at(number, definition, data)
        # The workflow may belong to another caller, and is not in the log then.
        parent.log.check_child(number, definition.name, workflow_id)
        record = await self._services.storage.get_workflow(workflow_id)
        conflict = find_conflict(call, data, record) if record is not None else None
        if conflict is not None:
            raise conflict
        return record


def is_repeated(call: Call, end: Completed) -> bool:
    """Tell whether a workflow's code is run again for a call that finds it ended."""
    return bool(call.definition.injected) and end.state is WorkflowState.SUCCESS


async def _call(
    run: EndedRun, definition: WorkflowDefinition, arguments: dict[str, Any]
) -> Exception | None:
    """Run the code; return why its caller must not continue, ``None`` if it may."""
    current_frame.set(Frame(run.services, run))
    raised: BaseException | None = None
    try:
        value = await definition.call(arguments)
        _compare(run, definition, value)
    except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # RunStopped, or an error of the application
        raised = error
    outage = infrastructure_error_in(raised) if raised is not None else None
    if outage is not None:
        return outage
    stopped = run.stopping.check() or (run.log.check_end() if raised is None else None)
    if stopped is not None:
        return stopped.error
    if raised is None or isinstance(raised, RunStopped):
        return None
    failure = NonDeterministicWorkflowError(
        run.workflow_id,
        run.log.calls,
        recorded="its success",
        called=f"nothing, and raises {type(raised).__name__}: {raised}",
    )
    failure.__cause__ = raised
    return failure


def _compare(run: EndedRun, definition: WorkflowDefinition, value: object) -> None:
    """Log that the code has another result than the recorded one, if it has."""
    try:
        _, seen = definition.values.write_result(value)
        is_equal = bool(seen == definition.values.read_result(run.workflow.output))
    except (EncodeError, DecodeError):
        is_equal = False
    if not is_equal:
        logger.warning(
            "Workflow %s (%s) came to another result when its code ran again over its log, for "
            "what it does to the objects of its request. The recorded result stands, and the "
            "response may have headers that do not fit it: let times, random numbers and ids come "
            "from steps.",
            run.workflow_id,
            definition.name,
        )
