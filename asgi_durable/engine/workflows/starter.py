"""Calling and starting workflows."""

from __future__ import annotations

import time
from collections.abc import Coroutine
from typing import Any

from asgi_durable.concurrency.backoff import Backoff
from asgi_durable.context import current_request
from asgi_durable.engine.replay.result_order import end_of_child
from asgi_durable.engine.runs.active_runs import ActiveRuns, wait_for
from asgi_durable.engine.runs.call import Call, kept_context
from asgi_durable.engine.runs.conflicts import find_conflict
from asgi_durable.engine.runs.outbox import Outbox
from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.runs.run_end import Completed, RunEnd, completed, raise_if_cancelled
from asgi_durable.engine.runs.runner import WorkflowRunner, refuse_missing_injected
from asgi_durable.engine.runs.services import Services
from asgi_durable.engine.stopping import Interrupted, OwnedElsewhereError
from asgi_durable.engine.workflows.rerun import EndedRun, Reruns, is_repeated
from asgi_durable.engine.workflows.result_waiters import ResultWaiters
from asgi_durable.errors import (
    StorageError,
    WorkflowConflictError,
    WorkflowNotFoundError,
)
from asgi_durable.ids import child_workflow_id, new_id
from asgi_durable.storage.records import WorkflowRecord, WorkflowState
from asgi_durable.storage.writes import StartWorkflow

__all__ = ["Workflows"]

FIRST_RETRY_SECONDS = 0.05
LONGEST_RETRY_SECONDS = 1.0


class Workflows:
    """Runs the application's workflows in this process.

    Args:
        services: The parts that all runs share.
        active: The runs of this process.
        runner: Executes runs.
        result_waiters: Waits for workflows that other executors run.
    """

    def __init__(
        self,
        services: Services,
        active: ActiveRuns,
        runner: WorkflowRunner,
        result_waiters: ResultWaiters,
    ) -> None:
        self._services = services
        self._active = active
        self._runner = runner
        self._result_waiters = result_waiters
        self._reruns = Reruns(services, result_waiters)

    async def begin(self, call: Call) -> Run | WorkflowRecord:
        """Return the run that a call starts or joins, or the finished workflow it finds.

        Raises:
            TypeError: The arguments do not fit the function.
            EncodeError: An argument cannot be recorded.
            WorkflowConflictError: The id belongs to another function, or other arguments.
            NonDeterministicWorkflowError: The calling workflow left its log.
        """
        definition = call.definition
        definition.prepare()
        data = definition.encode_input(call.args, call.kwargs)
        if definition.unrecorded:
            refuse_missing_injected(call)
        workflow_id = call.options.workflow_id
        if workflow_id is not None:
            if call.parent is not None:
                parent, number = call.parent
                parent.log.check_child(number, definition.name, workflow_id)
            return await self._claim(call, data, workflow_id)
        if call.parent is None:
            return self._start_fresh(call, data, new_id())
        parent, number = call.parent
        child = parent.log.child_at(number, definition, data)
        if child is None:
            # Invariant: the parent's log is all in memory, so no such child exists yet.
            return self._start_fresh(call, data, child_workflow_id(parent.workflow_id, number))
        return await self._join_recorded(call, child)

    def result(self, call: Call) -> Coroutine[Any, Any, Any]:
        """Begin a call, wait for its outcome, and return or raise it."""
        if call.parent is None:
            return self._result_alone(call)
        parent, number = call.parent
        if isinstance(parent, EndedRun):
            return self._reruns.result(call, parent, number)
        return self._result_in_run(call, parent, number)

    async def _result_alone(self, call: Call) -> Any:
        begun = await self.begin(call)
        end = await self._wait_for_end(call, begun)
        while (
            isinstance(begun, Run)
            and _is_owned_elsewhere(end)
            and not await self._exists(call, begun.workflow_id)
        ):
            await self._wait_for_new_name(begun)
            begun = await self.begin(call)
            end = await self._wait_for_end(call, begun)
        if _is_owned_elsewhere(end):
            end = await self._wait_elsewhere(call, begun.workflow_id)
        return self.value_of(end, begun.workflow_id)

    async def _result_in_run(self, call: Call, parent: Run, number: int) -> Any:
        begun = await self.begin(call)
        end = await self._wait_for_end(call, begun)
        if _is_owned_elsewhere(end):
            try:
                end = await self._wait_elsewhere(call, begun.workflow_id)
            except Exception as error:
                # Not the child's outcome: the parent's code must not continue with it.
                raise parent.stop(error, retry_here=True) from error
        await parent.log.finish_in_turn(number, _time_of_end(parent, number, begun))
        if isinstance(end, Completed):
            raise_if_cancelled(end, begun.workflow_id)
            return parent.log.outcome(call.definition, end.output, end.error)
        if isinstance(end.error, WorkflowConflictError):
            raise end.error
        raise parent.stop(end.error, retry_here=end.retry_here)

    async def _exists(self, call: Call, workflow_id: str) -> bool:
        """Tell whether a workflow has a row. It has none if its executor was dead at its start."""
        try:
            return await self._result_waiters.exists(workflow_id)
        except StorageError as error:
            if call.parent is None:
                raise
            # Not an outcome: the parent's code must not continue with it.
            raise call.parent[0].stop(error, retry_here=True) from error

    async def _wait_for_new_name(self, run: Run) -> None:
        """Wait until the process continues as another executor than the run's.

        Raises:
            OwnedElsewhereError: It does not.
        """
        executor, timeout = self._services.executor, self._services.storage_retry_seconds
        if not await executor.wait_until_renamed(run.executor_id, timeout):
            raise OwnedElsewhereError(run.workflow_id)

    async def _wait_elsewhere(self, call: Call, workflow_id: str) -> RunEnd:
        """Wait for the outcome of a workflow that another executor runs."""
        if not call.definition.unrecorded:
            return await self._result_waiters.wait(workflow_id, in_run=call.parent is not None)
        # Only this call has the objects of the request that the workflow needs.
        backoff = Backoff(FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS)
        while True:
            await backoff.wait()
            end = await self._wait_for_end(call, await self._join_again(call, workflow_id))
            if not _is_owned_elsewhere(end):
                return end

    async def _wait_for_end(self, call: Call, begun: Run | WorkflowRecord) -> RunEnd:
        """Wait until a call's run is over, or until its parent may continue.

        Its code has changed the objects of the call by then, in whatever process it has run.
        """
        end = await self._wait_for_run(call, begun)
        if call.parent is None or not isinstance(end, Completed):
            return end
        if is_repeated(call, end) and not _has_run(call, begun):
            if isinstance(begun, Run):
                # Its whole log will be read.
                await wait_for(begun, begun.done, call.loop)
            await self._reruns.repeat(call, *call.parent, begun.workflow_id)
        return end

    async def _wait_for_run(self, call: Call, begun: Run | WorkflowRecord) -> RunEnd:
        """Wait until a call's run is over; its parent then depends on the run's writes."""
        if isinstance(begun, WorkflowRecord):
            return completed(begun)
        if call.parent is None or begun.loop is not call.parent[0].loop:
            return await wait_for(begun, begun.done, call.loop)
        parent, number = call.parent
        parent.add_awaited(begun)
        try:
            # The parent may see the outcome before it is durable, but must not act on it sooner.
            end = await wait_for(begun, begun.ended, call.loop)
        except BaseException:
            parent.log.forget_result(number)
            raise
        finally:
            parent.remove_awaited(begun)
        if isinstance(end, Completed):
            parent.depend_on(begun)
        return end

    def start(self, call: Call) -> Coroutine[Any, Any, str]:
        """Begin a call and return the workflow's id once its start is durable."""
        if call.parent is not None:
            parent, number = call.parent
            if isinstance(parent, EndedRun):
                return self._reruns.start(call, parent, number)
        return self._start(call)

    async def _start(self, call: Call) -> str:
        parent = call.parent[0] if call.parent is not None else None
        while True:
            begun = await self._begin_and_leave(call)
            if isinstance(begun, WorkflowRecord):
                return begun.workflow_id
            if await wait_for(begun, begun.claimed, call.loop):
                return begun.workflow_id
            end = await wait_for(begun, begun.done, call.loop)
            # Invariant: the caller gets the workflow's id only once there is a row.
            if isinstance(end, Completed):
                return begun.workflow_id
            if _is_owned_elsewhere(end) and await self._exists(call, begun.workflow_id):
                return begun.workflow_id
            if parent is not None and not isinstance(end.error, WorkflowConflictError):
                raise parent.stop(end.error, retry_here=end.retry_here)
            if not _is_owned_elsewhere(end):
                raise end.error
            await self._wait_for_new_name(begun)

    def start_with_end(self, call: Call, workflow_id: str, outbox: Outbox) -> None:
        """Let a workflow be started in the commit in which its caller ends.

        Args:
            call: The call, with its place in the caller's log.
            workflow_id: The workflow's.
            outbox: The caller's.

        Raises:
            TypeError: The arguments do not fit the function.
            EncodeError: An argument cannot be recorded.
            NonDeterministicWorkflowError: The calling workflow left its log.
            WorkflowInterruptedError: The caller's end is being committed already.
        """
        definition = call.definition
        definition.prepare()
        data = definition.encode_input(call.args, call.kwargs)
        if definition.unrecorded:
            refuse_missing_injected(call)
        outbox.add(self._new_record(call, data, workflow_id))

    async def _begin_and_leave(self, call: Call) -> Run | WorkflowRecord:
        """Begin a call that does not wait for the end."""
        begun = await self.begin(call)
        if call.parent is not None:
            call.parent[0].log.finish_call()
        return begun

    def value_of(self, end: RunEnd, workflow_id: str) -> Any:
        """Return an outcome's result, or raise its error.

        Raises:
            DecodeError: It cannot be read in this process.
        """
        if isinstance(end, Interrupted):
            raise end.error
        raise_if_cancelled(end, workflow_id)
        return self._services.registry.outcome(end.name, end.output, end.error)

    async def _join_recorded(self, call: Call, child: WorkflowRecord) -> Run | WorkflowRecord:
        """Return the run of a child that an earlier execution of the parent called."""
        while True:
            active = self._active.find(child.workflow_id)
            if active is not None:
                return active
            if child.is_final:
                return child
            run = self._remember_run(call, Run(self._services, child, call.loop))
            # Invariant: the run is active before its log is read, so the log cannot grow
            # under another run of the same workflow.
            if self._active.launch(run, self._runner.loaded(run, call)):
                return run

    async def _join_again(self, call: Call, workflow_id: str) -> Run | WorkflowRecord:
        record = await self._services.storage.get_workflow(workflow_id)
        if record is None:
            raise WorkflowNotFoundError(workflow_id)
        return await self._join_recorded(call, record)

    def _start_fresh(self, call: Call, data: bytes, workflow_id: str) -> Run:
        """Start a workflow whose id cannot exist yet, without waiting until its row is durable."""
        run = self._new_run(call, data, workflow_id)
        if call.parent is not None:
            run.depend_on(call.parent[0])
        # The run is launched before its start is submitted, so that its task comes before the
        # committer's: a workflow without steps then starts and ends in one commit.
        self._active.launch(run, self._runner.fresh(run, call))
        run.writes.submit(StartWorkflow(run.workflow))
        return run

    async def _claim(self, call: Call, data: bytes, workflow_id: str) -> Run | WorkflowRecord:
        """Join the run of a given id, or start one once its row is durable and unique."""
        while True:
            active = self._active.find(workflow_id)
            if active is None:
                run = self._new_run(call, data, workflow_id)
                if call.parent is not None:
                    run.depend_on(call.parent[0])
                if self._active.launch(run, self._runner.claimed(run, call)):
                    return run
                continue
            await wait_for(active, active.claimed, call.loop)
            if active is self._active.find(workflow_id):
                conflict = find_conflict(call, data, active.workflow)
                if conflict is not None:
                    raise conflict
                return active

    def _remember_run(self, call: Call, run: Run) -> Run:
        """Let the call know a run that may get its injected parameters."""
        if call.definition.injected:
            call.runs.append(run)
        return run

    def _new_run(self, call: Call, data: bytes, workflow_id: str) -> Run:
        record = self._new_record(call, data, workflow_id)
        run = Run(self._services, record, call.loop, executor_id=record.executor_id)
        run.begin_span()
        return self._remember_run(call, run)

    def _new_record(self, call: Call, data: bytes, workflow_id: str) -> WorkflowRecord:
        request_id, request = None, current_request.get()
        parent, number = call.parent or (None, None)
        if parent is not None:
            # A run that continues without its caller has no current request.
            request_id = parent.workflow.request_id
        elif request is not None:
            request_id = request.request_id
        caller = parent.workflow if parent is not None else None
        now = time.time_ns() // 1000
        return WorkflowRecord(
            workflow_id=workflow_id,
            name=call.definition.name,
            state=WorkflowState.PENDING,
            executor_id=self._services.executor.id,
            attempts=1,
            parent_id=parent.workflow_id if parent is not None else None,
            parent_step=number,
            awaited=call.awaited,
            request_id=request_id,
            fingerprint=None,
            input=data,
            output=None,
            error=None,
            created_at_us=now,
            updated_at_us=now,
            trace_context=kept_context(self._services.telemetry, caller),
        )


def _time_of_end(parent: Run, number: int, begun: Run | WorkflowRecord) -> int:
    """Return when a parent's child has ended, in the times of the parent's log."""
    if isinstance(begun, WorkflowRecord):
        return end_of_child(begun)
    return parent.log.expected_time_us(number) or parent.log.next_time_us()


def _is_owned_elsewhere(end: RunEnd) -> bool:
    return isinstance(end, Interrupted) and end.is_owned_elsewhere


def _has_run(call: Call, begun: Run | WorkflowRecord) -> bool:
    """Tell whether a workflow's code has run to its end with the objects of a call."""
    return any(run is begun and run.claimed.get() for run in call.runs)
