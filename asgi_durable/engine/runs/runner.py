"""How the run of a workflow goes, from its first write to its ending."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from asgi_durable.engine.process.definitions import WorkflowDefinition
from asgi_durable.engine.process.log_text import error_text
from asgi_durable.engine.replay.recorded_calls import unused_log
from asgi_durable.engine.replay.result_order import expect_result_at
from asgi_durable.engine.replay.results import encode_error, infrastructure_error_in
from asgi_durable.engine.runs.call import Call
from asgi_durable.engine.runs.conflicts import find_conflict
from asgi_durable.engine.runs.run import Run, Services
from asgi_durable.engine.runs.run_end import (
    Completed,
    Interrupted,
    OwnedElsewhereError,
    RunEnd,
    finished,
)
from asgi_durable.engine.runs.spans import keep_span, observed_run
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
    """Runs workflows: each method is what one run does, and returns how it ended.

    Attributes:
        is_waited_for: Tells whether anybody waits for a run's outcome.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self.is_waited_for: Callable[[Run], bool] = lambda _: True

    def fresh(self, run: Run, call: Call) -> Coroutine[Any, Any, RunEnd]:
        if call.awaited:
            run.claimed.set(True)
        return self._drive_body(run, call.definition, call.args, call.kwargs)

    async def claimed(self, run: Run, call: Call) -> RunEnd:
        await run.settle()
        outcome = await run.commit(StartWorkflow(run.workflow))
        if outcome.kind is OutcomeKind.CONFLICT and outcome.existing is not None:
            return await self._drive_existing(run, call, outcome.existing)
        run.check(outcome)
        run.claimed.set(True)
        return await self._drive_body(run, call.definition, call.args, call.kwargs)

    async def _drive_existing(self, run: Run, call: Call, existing: WorkflowRecord) -> RunEnd:
        """Attach to the workflow that has the id already."""
        conflict = find_conflict(call, run.workflow.input or b"", existing)
        if conflict is not None:
            # It may be waiting for recovery, which this run has kept from it so far.
            return Interrupted(conflict, retry_here=True)
        if existing.is_final:
            return finished(existing)
        return await self.loaded(run, call)

    async def loaded(self, run: Run, call: Call) -> RunEnd:
        """Go on after the log, with the injected arguments of this call."""
        refusal = await self._take(run)
        if refusal is not None:
            return refusal
        stored = await self._services.storage.load_runs([run.workflow_id])
        if not stored or stored[0].workflow.input is None:
            return Interrupted(WorkflowInterruptedError(run.workflow_id, "its row is gone"))
        run.load(stored[0])
        run.claimed.set(True)
        return await self._drive_body(run, call.definition, call.args, call.kwargs)

    async def resumed(self, run: Run, *, is_counted: bool) -> RunEnd:
        """Go on after the log, without any call."""
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
            run.workflow = replace(run.workflow, attempts=run.workflow.attempts + 1)
        if definition.is_hopeless(run.workflow.crashes):
            return await self._set_aside(run)
        return await self._drive_body(run, definition, (), {})

    async def release(self, run: Run) -> RunEnd:
        run.check(await run.commit(ReleaseWorkflow(run.workflow_id, run.executor_id)))
        reason = "it is left to whoever can run it"
        return Interrupted(WorkflowInterruptedError(run.workflow_id, reason), is_released=True)

    async def _take(self, run: Run) -> RunEnd | None:
        """Make a workflow this executor's and count the execution that is about to begin.

        Returns its ending instead if it is finished, or another executor's.

        Invariant: a write before any body. Where the storage takes no writes, no step runs
        again and again without a chance of being recorded. And what is read of the log after
        it can be changed by nobody else.
        """
        now = time.time_ns() // 1000
        await run.settle()
        outcome = await run.commit(ResumeWorkflow(run.workflow_id, run.executor_id, now))
        if outcome.kind is not OutcomeKind.CONFLICT:
            run.check(outcome)
            return None
        if outcome.existing is None:
            return Interrupted(WorkflowInterruptedError(run.workflow_id, "its row is gone"))
        if outcome.existing.is_final:
            return finished(outcome.existing)
        return Interrupted(OwnedElsewhereError(run.workflow_id))

    async def _set_aside(self, run: Run) -> RunEnd:
        """End a workflow that has killed its process again and again."""
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
            # Who starts a workflow is told its id, so the start must be durable by then.
            await run.settle()
            run.claimed.set(True)
        arguments = _arguments(run, definition, args, kwargs)
        ending: RunEnd
        failure: Exception | None = None
        with observed_run(run) as observed:
            keep_span(run, observed.begin())
            try:
                for name in sorted(definition.unrecorded - arguments.keys()):
                    raise missing_injected(definition, name)
                running = definition.call(arguments)
                # They may be large, and the function may take long.
                del args, kwargs, arguments
                output, _ = definition.values.write_result(await running)
                ending = Completed(definition.name, WorkflowState.SUCCESS, output, None)
            except asyncio.CancelledError:
                # Neither the engine nor the event loop stops: its own code raised it. No outcome.
                own = WorkflowInterruptedError(run.workflow_id, "its code raised CancelledError")
                return run.interruption() or Interrupted(own)
            except Exception as error:
                outage = infrastructure_error_in(error)
                if outage is not None:
                    run.stop(outage, retry_here=True)
                observed.failed(error)
                encoded = encode_error(run.services.registry.values, error)
                ending = Completed(definition.name, WorkflowState.ERROR, None, encoded)
                failure = None if self.is_waited_for(run) else error
            try:
                # Invariant: asked last. What a stopped run's code makes of it is no outcome.
                ending = run.interruption() or unused_log(run) or await self._finish(run, ending)
                if isinstance(ending, Completed):
                    observed.ended(ending.state.value)
                    _tell_of(run, failure)
            finally:
                # It refers to this frame, by its traceback.
                failure = None
            return ending

    async def _finish(self, run: Run, ending: Completed) -> RunEnd:
        """Make a workflow's outcome durable, and with it what is to follow a success."""
        outbox = run.outbox if ending.state is WorkflowState.SUCCESS else None
        run.submit(
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
        await run.settle()
        if outbox is not None:
            outbox.on_committed()
        run.services.telemetry.observer.workflow_ended(run.workflow, ending.state.value)
        return ending


def _time_of_end(run: Run) -> int:
    """Return the time at which a run ends: where its caller waits, as times in its log are."""
    caller, number = run.caller, run.workflow.parent_step
    if caller is None or number is None or run.workflow.parent_id != caller.workflow_id:
        return time.time_ns() // 1000
    ends_at_us = caller.next_time_us()
    expect_result_at(caller, number, ends_at_us)
    return ends_at_us


def _arguments(
    run: Run, definition: WorkflowDefinition, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a function is called with; the first execution sees what is recorded too.

    Raises:
        RunStopped: It cannot be read.
    """
    data, is_first = run.workflow.input or b"{}", run.workflow.attempts == 1
    try:
        return definition.bind_input(data, args, kwargs, is_first=is_first)
    except DecodeError as failure:
        raise run.stop(failure) from failure


def _tell_of(run: Run, failure: Exception | None) -> None:
    """Write a failure to the log that nobody else is told of."""
    if failure is not None:
        logger.error(
            "Workflow %s (%s) failed, and nobody waits for it: %s",
            run.workflow_id,
            run.workflow.name,
            error_text(failure),
            exc_info=failure,
        )


def missing_injected(definition: WorkflowDefinition, name: str) -> DurableUsageError:
    """Return the error of a workflow that would run without what its caller gives it."""
    return DurableUsageError(
        f"workflow {definition.name!r} cannot run without its caller: its parameter {name!r} is "
        "not recorded, as a framework fills it for a request, or as it is what a method belongs to"
    )


def refuse_missing_injected(call: Call) -> None:
    """Refuse to run a workflow that needs its request where there is none."""
    if not call.awaited:
        raise missing_injected(call.definition, min(call.definition.unrecorded))
    given = call.definition.signature.bind(*call.args, **call.kwargs).arguments
    for name in sorted(call.definition.unrecorded - given.keys()):
        raise missing_injected(call.definition, name)
