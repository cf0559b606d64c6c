"""The run of a workflow, from its first write to its end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from asgi_durable.engine.process.definitions import WorkflowDefinition
from asgi_durable.engine.process.log_text import error_text
from asgi_durable.engine.process.recorded_errors import encode_error, infrastructure_error_in
from asgi_durable.engine.runs.call import Call
from asgi_durable.engine.runs.conflicts import find_conflict
from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.runs.run_end import Completed, RunEnd, completed
from asgi_durable.engine.runs.services import Services
from asgi_durable.engine.stopping import Interrupted, OwnedElsewhereError
from asgi_durable.errors import (
    DecodeError,
    DurableUsageError,
    RecoveryAttemptsExceededError,
    WorkflowInterruptedError,
)
from asgi_durable.storage.records import WorkflowRecord, WorkflowState
from asgi_durable.storage.writes import (
    FinishWorkflow,
    OutcomeKind,
    ReleaseWorkflow,
    ResumeWorkflow,
    StartWorkflow,
)

__all__ = ["WorkflowRunner", "missing_injected", "refuse_missing_injected"]

logger = logging.getLogger(__name__)


class WorkflowRunner:
    """Runs workflows: each method runs one in another situation, and returns how the run ended.

    Attributes:
        is_waited_for: Tells whether a caller waits for a run's outcome.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self.is_waited_for: Callable[[Run], bool] = lambda _: True

    def fresh(self, run: Run, call: Call) -> Coroutine[Any, Any, RunEnd]:
        """Run a workflow whose id is new."""
        if call.awaited:
            run.claimed.set(True)
        return self._drive_body(run, call.definition, call.args, call.kwargs)

    async def claimed(self, run: Run, call: Call) -> RunEnd:
        """Run a workflow under an id from its caller, or attach to the one that has the id."""
        await run.writes.wait_durable()
        outcome = await run.writes.commit(StartWorkflow(run.workflow))
        if outcome.kind is OutcomeKind.CONFLICT and outcome.existing is not None:
            return await self._drive_existing(run, call, outcome.existing)
        run.writes.check(outcome)
        run.claimed.set(True)
        return await self._drive_body(run, call.definition, call.args, call.kwargs)

    async def _drive_existing(self, run: Run, call: Call, existing: WorkflowRecord) -> RunEnd:
        """Attach to the workflow that already has the id."""
        conflict = find_conflict(call, run.workflow.input or b"", existing)
        if conflict is not None:
            # It may wait for recovery, which this run has prevented so far.
            return Interrupted(conflict, retry_here=True)
        if existing.is_final:
            return completed(existing)
        return await self.loaded(run, call)

    async def loaded(self, run: Run, call: Call) -> RunEnd:
        """Continue a workflow after its log, with the injected arguments of this call."""
        refusal = await self._take(run)
        if refusal is not None:
            return refusal
        stored = await self._services.storage.load_runs([run.workflow_id])
        if not stored or stored[0].workflow.input is None:
            return Interrupted(WorkflowInterruptedError(run.workflow_id, "its row was deleted"))
        run.load(stored[0])
        run.claimed.set(True)
        return await self._drive_body(run, call.definition, call.args, call.kwargs)

    async def resumed(self, run: Run, *, is_counted: bool) -> RunEnd:
        """Continue a workflow after its log, without a call."""
        definition = self._services.registry.find_workflow(run.workflow.name)
        if definition is None:
            reason = f"no function is registered as {run.workflow.name!r}"
            return Interrupted(WorkflowInterruptedError(run.workflow_id, reason))
        if definition.unrecorded and run.workflow.parent_id is not None:
            reason = "it takes parameters of its request and waits for the request's retry"
            return Interrupted(WorkflowInterruptedError(run.workflow_id, reason))
        if not is_counted:
            refusal = await self._take(run)
            if refusal is not None:
                return refusal
            run.count_attempt()
        if definition.is_hopeless(run.workflow.crashes):
            return await self._set_aside(run)
        return await self._drive_body(run, definition, (), {})

    async def release(self, run: Run) -> RunEnd:
        """Let any process run a workflow."""
        write = ReleaseWorkflow(run.workflow_id, run.executor_id)
        run.writes.check(await run.writes.commit(write))
        reason = "it is left to a process that can run it"
        return Interrupted(WorkflowInterruptedError(run.workflow_id, reason), is_released=True)

    async def _take(self, run: Run) -> RunEnd | None:
        """Make this executor the owner of a workflow, and count the execution that begins.

        Returns:
            How the run ends instead, if the workflow has ended or another executor owns it.

        Invariant: a write before any body. Where the storage accepts no writes, no step runs
        again and again without a chance of being recorded. And no other process can change the
        log that is read after it.
        """
        now = time.time_ns() // 1000
        await run.writes.wait_durable()
        outcome = await run.writes.commit(ResumeWorkflow(run.workflow_id, run.executor_id, now))
        if outcome.kind is not OutcomeKind.CONFLICT:
            run.writes.check(outcome)
            return None
        if outcome.existing is None:
            return Interrupted(WorkflowInterruptedError(run.workflow_id, "its row was deleted"))
        if outcome.existing.is_final:
            return completed(outcome.existing)
        return Interrupted(OwnedElsewhereError(run.workflow_id))

    async def _set_aside(self, run: Run) -> RunEnd:
        """End a workflow whose process died again and again."""
        error = RecoveryAttemptsExceededError(run.workflow_id, run.workflow.crashes)
        logger.error("Workflow %s (%s): %s", run.workflow_id, run.workflow.name, error)
        encoded = encode_error(self._services.registry.values, error)
        return await self._finish(
            run, Completed(run.workflow.name, WorkflowState.RETRIES_EXCEEDED, None, encoded)
        )

    async def _drive_body(
        self,
        run: Run,
        definition: WorkflowDefinition,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> RunEnd:
        """Run the function, make its outcome durable, and return it."""
        if not run.claimed.is_set():
            # The caller that starts a workflow gets its id, so the start must be durable by then.
            await run.writes.wait_durable()
            run.claimed.set(True)
        arguments = _arguments(run, definition, args, kwargs)
        ending: RunEnd
        failure: Exception | None = None
        with run.observe() as observed:
            run.record_span(observed.begin())
            try:
                for name in sorted(definition.unrecorded - arguments.keys()):
                    raise missing_injected(definition, name)
                running = definition.call(arguments)
                # They may be large, and the function may take long.
                del args, kwargs, arguments
                output, _ = definition.values.write_result(await running)
                ending = Completed(definition.name, WorkflowState.SUCCESS, output, None)
            except asyncio.CancelledError:
                # Unless the run is stopped, its own code raised it, which is no outcome.
                own = WorkflowInterruptedError(run.workflow_id, "its code raised CancelledError")
                return run.stopping.check() or Interrupted(own)
            except Exception as error:
                outage = infrastructure_error_in(error)
                if outage is not None:
                    run.stop(outage, retry_here=True)
                observed.failed(error)
                encoded = encode_error(run.services.registry.values, error)
                ending = Completed(definition.name, WorkflowState.ERROR, None, encoded)
                failure = None if self.is_waited_for(run) else error
            try:
                # Invariant: checked last. Whatever the code of a stopped run returns is no outcome.
                stopped = run.stopping.check() or run.log.check_end()
                ending = stopped or await self._finish(run, ending)
                if isinstance(ending, Completed):
                    observed.ended(ending.state.value)
                    _log_failure(run, failure)
            finally:
                # The error refers to this frame by its traceback.
                failure = None
            return ending

    async def _finish(self, run: Run, ending: Completed) -> RunEnd:
        """Make a workflow's outcome durable, and the workflows that it starts with a success."""
        outbox = run.outbox if ending.state is WorkflowState.SUCCESS else None
        run.writes.submit(
            FinishWorkflow(
                workflow_id=run.workflow_id,
                executor_id=run.executor_id,
                state=ending.state,
                output=ending.output,
                error=ending.error,
                finished_at_us=_time_of_end(run),
                starts=outbox.close() if outbox is not None else (),
            )
        )
        run.end(ending)
        await run.writes.wait_durable()
        if outbox is not None:
            outbox.on_committed()
        run.services.telemetry.observer.workflow_ended(run.workflow, ending.state.value)
        return ending


def _time_of_end(run: Run) -> int:
    """Return the time at which a run ends, in the times of its caller's log if that waits."""
    caller, number = run.caller, run.workflow.parent_step
    if caller is None or number is None or run.workflow.parent_id != caller.workflow_id:
        return time.time_ns() // 1000
    ends_at_us = caller.log.next_time_us()
    caller.log.expect_result(number, ends_at_us)
    return ends_at_us


def _arguments(
    run: Run, definition: WorkflowDefinition, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a function as they are recorded, on the first execution too.

    Raises:
        RunStopped: The recorded arguments cannot be read.
    """
    data, is_first = run.workflow.input or b"{}", run.workflow.attempts == 1
    try:
        return definition.bind_input(data, args, kwargs, is_first=is_first)
    except DecodeError as failure:
        raise run.stop(failure) from failure


def _log_failure(run: Run, failure: Exception | None) -> None:
    """Log a failure that no caller gets."""
    if failure is not None:
        logger.error(
            "Workflow %s (%s) failed, and nobody waits for it: %s",
            run.workflow_id,
            run.workflow.name,
            error_text(failure),
            exc_info=failure,
        )


def missing_injected(definition: WorkflowDefinition, name: str) -> DurableUsageError:
    """Return the error of a workflow that would run without its injected arguments."""
    return DurableUsageError(
        f"workflow {definition.name!r} cannot run without its caller: its parameter {name!r} is "
        "not recorded, as a framework fills it for a request, or as it is what a method belongs to"
    )


def refuse_missing_injected(call: Call) -> None:
    """Refuse to run a workflow that needs its request without one."""
    if not call.awaited:
        raise missing_injected(call.definition, min(call.definition.unrecorded))
    passed = call.definition.signature.bind(*call.args, **call.kwargs).arguments
    for name in sorted(call.definition.unrecorded - passed.keys()):
        raise missing_injected(call.definition, name)
