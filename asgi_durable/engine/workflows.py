"""Calling, starting and resuming workflows."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asgi_durable.context import current_request
from asgi_durable.engine.active_runs import ActiveRuns, wait_for
from asgi_durable.engine.registry import WorkflowDefinition
from asgi_durable.engine.run import Ending, Finished, Interrupted, Run, Services, finished
from asgi_durable.engine.values import decode_recorded, encode_error, infrastructure_error_in
from asgi_durable.errors import (
    DecodeError,
    DurableUsageError,
    WorkflowConflictError,
    WorkflowInterruptedError,
)
from asgi_durable.ids import CHILD_SEPARATOR, child_workflow_id, new_id
from asgi_durable.storage.records import StoredRun, WorkflowRecord, WorkflowState
from asgi_durable.storage.writes import FinishWorkflow, OutcomeKind, ResumeWorkflow, StartWorkflow

__all__ = ["Call", "WorkflowOptions", "Workflows"]

logger = logging.getLogger(__name__)

MAX_WORKFLOW_ID_CHARACTERS = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowOptions:
    """How a workflow is called.

    Raises:
        DurableUsageError: The id is empty, too long, not printable or reserved.
    """

    workflow_id: str | None = None

    def __post_init__(self) -> None:
        """Refuse ids that could be a child's, or that break a log line."""
        workflow_id = self.workflow_id
        if workflow_id is None:
            return
        if (
            not 1 <= len(workflow_id) <= MAX_WORKFLOW_ID_CHARACTERS
            or not workflow_id.isprintable()
            or CHILD_SEPARATOR in workflow_id
        ):
            msg = (
                "a workflow id is 1 to 255 printable characters without "
                f"{CHILD_SEPARATOR!r}, got {workflow_id!r}"
            )
            raise DurableUsageError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a workflow: what, with which arguments, and from where.

    Attributes:
        loop: The event loop that the call runs on.
        parent: The run that calls, with the place of the call in its log.
        awaited: True for a call, False for a start in the background.
    """

    definition: WorkflowDefinition
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    options: WorkflowOptions
    loop: asyncio.AbstractEventLoop
    parent: tuple[Run, int] | None
    awaited: bool


class Workflows:
    """Runs the application's workflows in this process."""

    def __init__(self, services: Services, active: ActiveRuns) -> None:
        self._services = services
        self._active = active

    async def begin(self, call: Call) -> Run | WorkflowRecord:
        """Return the run that a call starts or joins, or the finished workflow it finds.

        Raises:
            TypeError: The arguments do not fit the function.
            EncodeError: An argument cannot be recorded.
            WorkflowConflictError: The id belongs to another function.
            NonDeterministicWorkflowError: The calling workflow left its log.
        """
        definition = call.definition
        definition.prepare()
        data = definition.encode_input(call.args, call.kwargs)
        if definition.ambient:
            _refuse_ambient(call)
        workflow_id = call.options.workflow_id
        if workflow_id is not None:
            if call.parent is not None:
                call.parent[0].refuse_other_child(call.parent[1], definition.name, workflow_id)
            return await self._claim(call, data, workflow_id)
        if call.parent is None:
            return self._start_fresh(call, data, new_id())
        parent, number = call.parent
        child = parent.recorded_child(number, definition.name, data)
        if child is None:
            # Invariant: the parent's log is all in memory, so no such child exists yet.
            return self._start_fresh(call, data, child_workflow_id(parent.workflow_id, number))
        return await self._join_recorded(call, child)

    async def result(self, call: Call) -> Any:
        """Begin a call, wait for its outcome, and return or raise it."""
        begun = await self.begin(call)
        if call.parent is None:
            if isinstance(begun, WorkflowRecord):
                return self.value_of(finished(begun))
            return self.value_of(await wait_for(begun, begun.done, call.loop))
        if isinstance(begun, WorkflowRecord):
            return decode_recorded(call.parent[0], begun.output, begun.error)
        parent = call.parent[0]
        if begun.loop is parent.loop:
            # The parent may see the outcome before it is durable, but must not act on it
            # sooner.
            ending = await wait_for(begun, begun.ended, call.loop)
            if isinstance(ending, Finished):
                parent.depend_on(begun)
        else:
            ending = await wait_for(begun, begun.done, call.loop)
        if isinstance(ending, Finished):
            return decode_recorded(parent, ending.output, ending.error)
        if isinstance(ending.error, WorkflowConflictError):
            raise ending.error
        raise parent.stop(ending.error, goes_on=ending.goes_on)

    async def start(self, call: Call) -> str:
        """Begin a call and return the workflow's id once its start is durable."""
        begun = await self.begin(call)
        if isinstance(begun, WorkflowRecord):
            return begun.workflow_id
        if not await wait_for(begun, begun.claimed, call.loop):
            ending = await wait_for(begun, begun.done, call.loop)
            if isinstance(ending, Interrupted):
                raise ending.error
        return begun.workflow_id

    def value_of(self, ending: Ending) -> Any:
        """Return an outcome's result, or raise its error."""
        if isinstance(ending, Interrupted):
            raise ending.error
        decode = self._services.registry.codec.decode
        if ending.error is not None:
            raise decode(ending.error)
        return decode(ending.output or b"null")

    def resume(self, stored: StoredRun) -> Run | None:
        """Run a recorded workflow again; return ``None`` if somebody does already.

        The run has none of the caller's context variables: they are another request's.
        """
        run = Run(self._services, stored.workflow, asyncio.get_running_loop())
        run.load(stored)
        run.claimed.set(True)
        drive = self._drive_resumed(run)
        return run if self._active.launch(run, drive, context=contextvars.Context()) else None

    async def _join_recorded(self, call: Call, child: WorkflowRecord) -> Run | WorkflowRecord:
        """Return the run of a child that an earlier execution of the parent called."""
        while True:
            active = self._active.find(child.workflow_id)
            if active is not None:
                return active
            if child.is_final:
                return child
            run = Run(self._services, child, call.loop)
            # Invariant: the run is active before its log is read, so the log cannot grow
            # under another run of the same workflow.
            if self._active.launch(run, self._drive_loaded(run, call)):
                return run

    def _start_fresh(self, call: Call, data: bytes, workflow_id: str) -> Run:
        """Start a workflow whose id cannot exist yet; its row need not be durable so far."""
        run = Run(self._services, self._new_record(call, data, workflow_id), call.loop)
        if call.parent is not None:
            run.depend_on(call.parent[0])
        # Launched before its start is submitted, so that it runs before the committer does:
        # a workflow without steps then starts and ends in one commit.
        self._active.launch(run, self._drive_fresh(run, call))
        run.submit(StartWorkflow(run.workflow))
        return run

    async def _claim(self, call: Call, data: bytes, workflow_id: str) -> Run | WorkflowRecord:
        """Join the run of a given id, or start one once its row is durable and unique."""
        while True:
            active = self._active.find(workflow_id)
            if active is None:
                run = Run(self._services, self._new_record(call, data, workflow_id), call.loop)
                if call.parent is not None:
                    run.depend_on(call.parent[0])
                if self._active.launch(run, self._drive_claimed(run, call)):
                    return run
                continue
            await wait_for(active, active.claimed, call.loop)
            if active is self._active.find(workflow_id):
                if active.workflow.name != call.definition.name:
                    raise _conflict(call.definition, active.workflow)
                return active

    async def _drive_fresh(self, run: Run, call: Call) -> Ending:
        if not call.awaited:
            # Who starts a workflow is told its id, so the start must be durable by then.
            await run.settle()
        run.claimed.set(True)
        return await self._drive_body(run, call.definition, call.args, call.kwargs)

    async def _drive_claimed(self, run: Run, call: Call) -> Ending:
        await run.settle()
        outcome = await run.commit(StartWorkflow(run.workflow))
        if outcome.kind is OutcomeKind.CONFLICT and outcome.existing is not None:
            return await self._drive_existing(run, call, outcome.existing)
        run.check(outcome)
        run.claimed.set(True)
        return await self._drive_body(run, call.definition, call.args, call.kwargs)

    async def _drive_existing(self, run: Run, call: Call, existing: WorkflowRecord) -> Ending:
        """Attach to the workflow that has the id already."""
        if existing.name != call.definition.name or existing.is_request:
            # It may be waiting for recovery, which this run has kept from it so far.
            return Interrupted(_conflict(call.definition, existing), goes_on=True)
        if existing.is_final:
            return finished(existing)
        if existing.executor_id != self._services.executor_id:
            reason = "another executor owns it"
            return Interrupted(WorkflowInterruptedError(run.workflow_id, reason))
        return await self._drive_loaded(run, call)

    async def _drive_loaded(self, run: Run, call: Call) -> Ending:
        """Go on after the log, with the ambient arguments of this call."""
        stored = await self._services.storage.load_runs([run.workflow_id])
        if not stored or stored[0].workflow.input is None:
            return Interrupted(WorkflowInterruptedError(run.workflow_id, "its row is gone"))
        run.load(stored[0])
        run.claimed.set(True)
        if run.workflow.is_final:
            return finished(run.workflow)
        await self._count_attempt(run)
        return await self._drive_body(run, call.definition, call.args, call.kwargs)

    async def _drive_resumed(self, run: Run) -> Ending:
        """Go on after the log, without any call."""
        definition = self._services.registry.find_workflow(run.workflow.name)
        if definition is None:
            reason = f"no function is registered as {run.workflow.name!r}"
            logger.warning("Workflow %s stays PENDING: %s", run.workflow_id, reason)
            return Interrupted(WorkflowInterruptedError(run.workflow_id, reason))
        if definition.ambient and run.workflow.parent_id is not None:
            reason = "it takes parameters of its request and waits for the request's retry"
            return Interrupted(WorkflowInterruptedError(run.workflow_id, reason))
        await self._count_attempt(run)
        return await self._drive_body(run, definition, (), {})

    async def _count_attempt(self, run: Run) -> None:
        """Count the execution that is about to begin.

        Invariant: a write before any body. Where the storage takes no writes, no step runs
        again and again without a chance of being recorded.
        """
        now = time.time_ns() // 1000
        run.submit(ResumeWorkflow(run.workflow_id, self._services.executor_id, now))
        await run.settle()

    async def _drive_body(
        self,
        run: Run,
        definition: WorkflowDefinition,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Ending:
        """Run the function, make its outcome durable, and return it."""
        try:
            # The first execution sees the recorded arguments too.
            arguments = definition.bind_input(run.workflow.input or b"{}", args, kwargs)
        except DecodeError as failure:
            raise run.stop(failure) from failure
        ending = await _ending_of(run, definition, arguments)
        if isinstance(ending, Finished):
            run.submit(
                FinishWorkflow(
                    workflow_id=run.workflow_id,
                    executor_id=self._services.executor_id,
                    state=ending.state,
                    output=ending.output,
                    error=ending.error,
                    finished_at_us=time.time_ns() // 1000,
                )
            )
            run.end(ending)
            await run.settle()
        return ending

    def _new_record(self, call: Call, data: bytes, workflow_id: str) -> WorkflowRecord:
        request = current_request.get()
        parent, number = call.parent or (None, None)
        now = time.time_ns() // 1000
        return WorkflowRecord(
            workflow_id=workflow_id,
            name=call.definition.name,
            state=WorkflowState.PENDING,
            executor_id=self._services.executor_id,
            attempts=1,
            parent_id=parent.workflow_id if parent is not None else None,
            parent_step=number,
            awaited=call.awaited,
            request_id=request.request_id if request is not None else None,
            fingerprint=None,
            input=data,
            output=None,
            error=None,
            created_at_us=now,
            updated_at_us=now,
        )


async def _ending_of(run: Run, definition: WorkflowDefinition, arguments: dict[str, Any]) -> Ending:
    """Call a workflow's function and return its outcome, encoded; nothing is durable yet."""
    codec = run.services.registry.codec
    try:
        for name in sorted(definition.ambient - arguments.keys()):
            raise _missing_ambient(definition, name)
        output = codec.encode(await definition.call(arguments))
        ending = Finished(WorkflowState.SUCCESS, output, None)
    except asyncio.CancelledError:
        # Neither the engine nor the event loop stops: its own code raised it. No outcome.
        own = WorkflowInterruptedError(run.workflow_id, "its code raised CancelledError")
        return run.interruption() or Interrupted(own)
    except Exception as error:
        outage = infrastructure_error_in(error)
        if outage is not None:
            run.stop(outage, goes_on=True)
        ending = Finished(WorkflowState.ERROR, None, encode_error(codec, error))
    # Invariant: asked last. What a stopped run's code makes of it is no outcome.
    interruption = run.interruption()
    if interruption is None:
        interruption = run.unused_log()
    return interruption or ending


def _refuse_ambient(call: Call) -> None:
    """Refuse to run a workflow that needs its request where there is none."""
    if not call.awaited:
        raise _missing_ambient(call.definition, min(call.definition.ambient))
    given = call.definition.signature.bind(*call.args, **call.kwargs).arguments
    for name in sorted(call.definition.ambient - given.keys()):
        raise _missing_ambient(call.definition, name)


def _missing_ambient(definition: WorkflowDefinition, name: str) -> DurableUsageError:
    return DurableUsageError(
        f"workflow {definition.name!r} cannot run without its request: the framework fills its "
        f"parameter {name!r}, which is not recorded"
    )


def _conflict(definition: WorkflowDefinition, existing: WorkflowRecord) -> WorkflowConflictError:
    return WorkflowConflictError(
        existing.workflow_id, wanted=definition.name, existing=existing.name
    )
