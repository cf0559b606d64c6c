"""One attempt of a request: the run that claims it, and calls its handler."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from asgi_durable.codec.sealing.sealer import REQUEST
from asgi_durable.engine.process.settings import Retention
from asgi_durable.engine.requests.claim_results import TakenKey
from asgi_durable.engine.requests.response_commit import ResponseCommit, end_without_response
from asgi_durable.engine.runs.active_runs import ActiveRuns
from asgi_durable.engine.runs.call import kept_context
from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.runs.run_end import RunEnd
from asgi_durable.engine.runs.services import Services
from asgi_durable.engine.steps.single_transaction import SingleTransaction
from asgi_durable.engine.stopping import Interrupted
from asgi_durable.errors import (
    DurableUsageError,
    StorageUnavailableError,
    WorkflowInterruptedError,
)
from asgi_durable.fast_dataclass import fast_dataclass
from asgi_durable.storage.records import WorkflowRecord, WorkflowState
from asgi_durable.storage.writes import ClaimRequest, OutcomeKind

__all__ = ["Handler", "Request", "RequestRun"]

Handler = Callable[[ResponseCommit], Awaitable[None]]


@fast_dataclass(kw_only=True)
class Request:
    """One attempt of a request.

    Attributes:
        workflow_id: The workflow's id, made of the key and its scope.
        name: The request's name, for people.
        fingerprint: Equal for retries of one request, different for any other; or a placeholder
            until the whole body is there (``storage.records.PENDING_FINGERPRINT``).
        request_id: The id of this attempt.
        retention: How long the response is stored.
        follows: True to follow the stream of a duplicate whose response is being recorded.
        input: The stored request, with which a process continues it without its client; ``None``
            if only the client continues it.
        is_single_transaction: True for a request that one transaction claims and completes.
        fingerprint_like: Returns this request's fingerprint by the method of a stored one:
            earlier versions had another method, and keys may have been replaced.
        other_fingerprints: Returns the other fingerprints that may be recorded for this request.
    """

    workflow_id: str
    name: str
    fingerprint: str
    request_id: str
    retention: Retention = Retention()
    follows: bool = False
    input: bytes | None = None
    is_single_transaction: bool = False
    fingerprint_like: Callable[[str | None], str] | None = None
    other_fingerprints: Callable[[], Sequence[str]] = tuple


class RequestRun:
    """The run of one attempt of a request.

    Args:
        services: The parts that all runs share.
        active: The runs of this process.
        request: The request.
        wait_until: How long a single transaction waits for the transaction of a duplicate, by
            ``time.monotonic``.
        on_recorded: Called with the request's id after each chunk of its response that is
            recorded as a stream.

    Attributes:
        run: The run, not launched yet.
        taken: The row that has the key, if the run could not claim it.

    Raises:
        DurableUsageError: It is a single transaction in another database than the step log.
    """

    __slots__ = ("_active", "_on_recorded", "_retention", "run", "taken")

    def __init__(
        self,
        services: Services,
        active: ActiveRuns,
        request: Request,
        *,
        wait_until: float,
        on_recorded: Callable[[str], None],
    ) -> None:
        row = _claim_row(services, request)
        run = Run(services, row, asyncio.get_running_loop(), executor_id=row.executor_id)
        if request.is_single_transaction:
            if services.application is not None:
                msg = "single_transaction=True needs the step log in the application's database"
                raise DurableUsageError(msg)
            run.limit_to(SingleTransaction(run, wait_until))
        self._active = active
        self._retention = request.retention
        self._on_recorded = on_recorded
        self.run = run
        self.taken: TakenKey | None = None

    async def execute(self, handler: Handler) -> RunEnd:
        """Claim the request, call its handler, and return how the run ended.

        Args:
            handler: Commits the response. It is not called if the key is taken.
        """
        run = self.run
        if run.single_transaction is not None and await self._may_have_row():
            run.lift_limit()
        if run.single_transaction is None:
            outcome = await run.writes.commit(ClaimRequest(run.workflow))
            if outcome.kind is OutcomeKind.CONFLICT and outcome.existing is not None:
                self.taken = TakenKey(outcome.existing, outcome.response)
                error = WorkflowInterruptedError(run.workflow_id, "its key is taken")
                return Interrupted(error, is_released=True)
            run.writes.check(outcome)
            if outcome.kind is OutcomeKind.RESUMED:
                await self._load_log()
        request = ResponseCommit(run, self._active, self._retention, self._on_recorded)
        run.claimed.set(True)
        request.log_state("claimed" if run.single_transaction is None else "begun")
        try:
            await handler(request)
        finally:
            if run.single_transaction is not None:
                await run.single_transaction.roll_back()
                # The run and its transaction refer to each other, and both are over.
                run.lift_limit()
        return request.run_end or end_without_response(run)

    async def _may_have_row(self) -> bool:
        """Tell whether the request may have a row already.

        Then the row decides, as for any other request. A single transaction without one is
        claimed together with its response, and not before.
        """
        try:
            return await self.run.services.storage.get_workflow(self.run.workflow_id) is not None
        except StorageUnavailableError:
            # The claim retries for longer.
            return True

    async def _load_log(self) -> None:
        """Load the log of earlier attempts."""
        run = self.run
        own_span = run.workflow.last_span
        for stored in await run.services.storage.load_runs([run.workflow_id]):
            run.load(stored)
        run.record_span(own_span)


def _claim_row(services: Services, request: Request) -> WorkflowRecord:
    """Return the row that claims a request."""
    stored, seal = request.input, services.registry.sealer.seal_bytes
    now = time.time_ns() // 1000
    return WorkflowRecord(
        workflow_id=request.workflow_id,
        name=request.name,
        state=WorkflowState.PENDING,
        executor_id=services.executor.id,
        attempts=1,
        parent_id=None,
        parent_step=None,
        awaited=True,
        request_id=request.request_id,
        fingerprint=request.fingerprint,
        input=seal(stored, REQUEST) if stored is not None else None,
        output=None,
        error=None,
        created_at_us=now,
        updated_at_us=now,
        trace_context=kept_context(services.telemetry),
        last_span=services.telemetry.observer.request_span(),
    )
