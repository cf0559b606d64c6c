"""Workflows that are requests: claimed under a key, resumed by a retry.

The engine knows nothing of HTTP: the body of such a workflow is a handler that the caller passes,
and its outcome is the response that the handler commits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from asgi_durable.concurrency.backoff import Backoff
from asgi_durable.engine.process.settings import Retention
from asgi_durable.engine.requests.claim_results import (
    Answered,
    Cancelled,
    Claimed,
    Expired,
    FingerprintWanted,
    Followed,
    InProgress,
    KeyReused,
    Refusal,
    RetryLater,
    TakenKey,
    result_for_running,
    result_for_taken_key,
)
from asgi_durable.engine.requests.duplicates import Duplicates
from asgi_durable.engine.requests.progress import DONE, Progress, progress_of, sleep_of
from asgi_durable.engine.requests.redirects import find_redirect
from asgi_durable.engine.requests.request import Request, log_state, record_of
from asgi_durable.engine.requests.request_ids import RequestIds
from asgi_durable.engine.requests.response_commit import ResponseCommit
from asgi_durable.engine.requests.response_streams import StreamDamagedError, StreamLog, Streams
from asgi_durable.engine.requests.sealed_responses import opened_response
from asgi_durable.engine.runs.active_runs import ActiveRuns, wait_for
from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.runs.run_end import RunEnd
from asgi_durable.engine.runs.services import Services
from asgi_durable.engine.steps.single_transaction import SingleTransaction
from asgi_durable.engine.stopping import CancelledElsewhereError, Interrupted
from asgi_durable.engine.workflows.cancellation import Cancellation
from asgi_durable.engine.workflows.result_waiters import ResultWaiters
from asgi_durable.errors import (
    DurableUsageError,
    StorageError,
    StorageUnavailableError,
    WorkflowInterruptedError,
    WorkflowNotFoundError,
)
from asgi_durable.storage.records import ResponseRecord, WorkflowRecord
from asgi_durable.storage.writes import (
    ClaimRequest,
    OutcomeKind,
)

__all__ = [
    "Answered",
    "Cancelled",
    "Claimed",
    "Expired",
    "FingerprintWanted",
    "Followed",
    "InProgress",
    "KeyReused",
    "Progress",
    "Request",
    "Requests",
    "ResponseCommit",
    "RetryLater",
]

FIRST_POLL_SECONDS = 0.025
LONGEST_POLL_SECONDS = 0.25


Claim = Claimed | Refusal


Handler = Callable[[ResponseCommit], Awaitable[None]]


def _as_stored(request: Request, reused: KeyReused) -> Request | None:
    """Return the request with the stored fingerprint, if that is its own by another method."""
    if request.fingerprint_like is None:
        return None
    fingerprint = request.fingerprint_like(reused.fingerprint)
    return replace(request, fingerprint=fingerprint) if fingerprint == reused.fingerprint else None


class Requests:
    """Claims requests and runs their handlers.

    Attributes:
        ids: Makes the workflow ids of requests.
        streams: Reads responses that are recorded as streams.
        spool: Counts the bodies of duplicates that are on the disk.
        fingerprints: Makes fingerprints that reveal nothing without the encryption key.
    """

    def __init__(
        self,
        services: Services,
        active: ActiveRuns,
        result_waiters: ResultWaiters,
        cancellation: Cancellation,
        ids: RequestIds,
    ) -> None:
        self.ids = ids
        self._services = services
        self._active = active
        self._result_waiters = result_waiters
        self._cancellation = cancellation
        self._duplicates = Duplicates()
        self.streams = Streams(services.storage, services.registry.sealer, result_waiters)
        self.spool = services.spool
        self.fingerprints = services.registry.sealer.fingerprints

    async def claim(
        self,
        request: Request,
        handler: Handler,
        *,
        wait_seconds: float = 0.0,
        storage_retry_seconds: float | None = None,
    ) -> Claim:
        """Claim a request, or return the state of the request that has its key.

        Args:
            request: The request.
            handler: Called in a task of the engine if the request is claimed.
            wait_seconds: How long to wait for a duplicate that runs already, here or elsewhere;
                the call does not wait if too many wait already, or while the duplicate sleeps.
            storage_retry_seconds: How long to wait, if this process was declared dead, until it
                continues as another executor; the storage retry timeout by default.

        Raises:
            StorageError: It is not known whether the request is claimed.
            WorkflowInterruptedError: It is not claimed: this process cannot claim it now.
            DurableUsageError: It is a single transaction in another database than the step log.
            EncryptionKeyMissingError: The request that has the key cannot be compared, as this
                process does not have the encryption key of its record.
        """
        now = time.monotonic()
        rename_by = now + self._rename_seconds(storage_retry_seconds)
        give_up_at = now + wait_seconds
        backoff: Backoff | None = None
        has_waited = False
        while True:
            request, claim = await self._claim_in_any_version(
                request, handler, rename_by, give_up_at
            )
            if not isinstance(claim, InProgress):
                break
            backoff = backoff or Backoff(FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS)
            left_seconds = give_up_at - time.monotonic()
            if request.follows:
                if await self._may_follow(claim.workflow):
                    claim = Followed(claim.workflow)
                    break
                left_seconds = min(left_seconds, backoff.seconds)
            sleeps_until_us = await sleep_of(
                request.workflow_id, self._services.storage, self._active
            )
            if sleeps_until_us is not None or time.monotonic() >= give_up_at:
                claim = replace(claim, sleeps_until_us=sleeps_until_us)
                break
            if not await self._wait_for_duplicate(
                request.workflow_id, left_seconds, backoff.next()
            ):
                break
            has_waited = True
        if not isinstance(claim, FingerprintWanted):
            observer = self._services.telemetry.observer
            outcome = "waited" if has_waited and isinstance(claim, Answered) else claim.outcome
            waited_seconds = time.monotonic() - now if has_waited else None
            observer.request_claimed(outcome, claim.workflow, waited_seconds=waited_seconds)
        return claim

    def _rename_seconds(self, wanted: float | None) -> float:
        """Return how long a dead executor waits for its new name."""
        return self._services.storage_retry_seconds if wanted is None else wanted

    async def redirect_of(self, request: Request) -> ResponseRecord | None:
        """Return the redirect that a request got before, ``None`` if it did not get one.

        Raises:
            StorageError: The storage failed.
        """
        storage = self._services.storage
        fingerprints = (request.fingerprint, *request.other_fingerprints())
        return await find_redirect(storage, request.workflow_id, fingerprints)

    def opened(self, response: ResponseRecord) -> ResponseRecord:
        """Return a recorded response as it was sent.

        Raises:
            EncryptionKeyMissingError: It is encrypted with a key that this process does not have.
            ResponseDamagedError: It is damaged.
        """
        return opened_response(self._services.registry.sealer, response)

    async def _may_follow(self, duplicate: WorkflowRecord) -> bool:
        """Tell whether a duplicate's response is recorded as a stream, and can be followed.

        It cannot if the duplicate's process may have died: the caller waits for the takeover.
        """
        streams, workflow_id = self.streams, duplicate.workflow_id
        if not streams.may_follow(workflow_id):
            return False
        try:
            if await streams.start_of(workflow_id) is None:
                return False
        except StreamDamagedError:
            # The run that records it may still replace it.
            return False
        if self._active.find(workflow_id) is not None or duplicate.executor_id is None:
            return True
        return not await self._may_be_dead(duplicate.executor_id)

    async def _may_be_dead(self, executor_id: str) -> bool:
        is_missing = self._services.storage.is_missing
        if await is_missing(executor_id):
            return True
        # Again: a client may retry before the database knows that a process was killed.
        await asyncio.sleep(FIRST_POLL_SECONDS)
        return await is_missing(executor_id)

    async def is_known(self, workflow_id: str) -> bool:
        """Tell whether a request with this id has its key, which is not free again.

        Raises:
            StorageError: The storage failed.
        """
        storage = self._services.storage
        found = await storage.get_workflow(workflow_id)
        if found is None or not found.is_final:
            return found is not None
        response = await storage.get_response(workflow_id)
        return response is not None and time.time_ns() // 1000 < response.forgotten_at_us

    async def progress(self, workflow_id: str) -> Progress | None:
        """Return how far a request is, ``None`` if there is none, or it has expired.

        Raises:
            StorageError: The storage failed.
        """
        return await progress_of(workflow_id, self._services.storage, self._active)

    async def cancel(self, workflow_id: str) -> bool:
        """Cancel a request; return False if it is finished.

        Raises:
            WorkflowNotFoundError: There is none, or it has expired.
            StorageError: It is not known to be cancelled.
        """
        progress = await self.progress(workflow_id)
        if progress is None:
            raise WorkflowNotFoundError(workflow_id)
        return progress.state != DONE and await self._cancellation.cancel(workflow_id)

    async def _wait_for_duplicate(
        self, workflow_id: str, left_seconds: float, poll_seconds: float
    ) -> bool:
        """Wait until a claim may have another result; return False if too many wait already."""
        with self._duplicates.waiting(workflow_id) as may_wait:
            if may_wait:
                await self._result_waiters.wait_while_it_runs(
                    workflow_id, left_seconds, poll_seconds
                )
        return may_wait

    async def _claim_in_any_version(
        self, request: Request, handler: Handler, rename_by: float, give_up_at: float
    ) -> tuple[Request, Claim]:
        """Claim a request with the fingerprint of its earlier attempts, if there are any."""
        while True:
            claim = await self._claim_now(request, handler, rename_by, give_up_at)
            same = _as_stored(request, claim) if isinstance(claim, KeyReused) else None
            if same is None:
                return request, claim
            request = same

    async def _claim_now(
        self, request: Request, handler: Handler, rename_by: float, give_up_at: float
    ) -> Claim:
        loop = asyncio.get_running_loop()
        workflow_id, fingerprint = request.workflow_id, request.fingerprint
        while True:
            active = self._active.find(workflow_id)
            if active is not None:
                await wait_for(active, active.claimed, loop)
                if active is self._active.find(workflow_id):
                    return result_for_running(active.workflow, fingerprint)
                continue
            run = self._run_of(request, give_up_at)
            refusals: list[TakenKey] = []
            drive = self._drive(run, handler, request.retention, refusals.append)
            if self._active.launch(run, drive):
                claim = await self._claim_result(run, fingerprint, rename_by, refusals)
                if claim is not None:
                    return claim

    def _run_of(self, request: Request, give_up_at: float) -> Run:
        row = record_of(self._services, request)
        loop = asyncio.get_running_loop()
        run = Run(self._services, row, loop, executor_id=row.executor_id)
        if request.is_single_transaction:
            if self._services.application is not None:
                msg = "single_transaction=True needs the step log in the application's database"
                raise DurableUsageError(msg)
            run.limit_to(SingleTransaction(run, give_up_at))
        return run

    async def _claim_result(
        self, run: Run, fingerprint: str, rename_by: float, refusals: Sequence[TakenKey]
    ) -> Claim | None:
        """Return the result of a claim, ``None`` if it must be made again."""
        loop = asyncio.get_running_loop()
        if await wait_for(run, run.claimed, loop):
            return Claimed(run)
        ending = await wait_for(run, run.done, loop)
        for taken in refusals:
            return await result_for_taken_key(taken, fingerprint, self._services.storage)
        if isinstance(ending, Interrupted):
            if isinstance(ending.error, StorageError):
                raise ending.error
            if isinstance(ending.error, CancelledElsewhereError):
                # The row says so, which this claim was stopped from reading.
                return None
            if ending.is_owned_elsewhere:
                # A dead executor claims nothing; the process continues under another name soon.
                executor, left = self._services.executor, rename_by - time.monotonic()
                if await executor.wait_until_renamed(run.executor_id, left):
                    return None
                raise ending.error
        return Claimed(run)

    async def _drive(
        self,
        run: Run,
        handler: Handler,
        retention: Retention,
        refuse: Callable[[TakenKey], None],
    ) -> RunEnd:
        """Claim the request, call its handler, and return how the run ended.

        Args:
            run: The request's run.
            handler: Commits the response.
            retention: How long the response is stored.
            refuse: Called instead of the handler if another request has the key.
        """
        if not await self._may_begin_unclaimed(run):
            run.lift_limit()
            outcome = await run.writes.commit(ClaimRequest(run.workflow))
            if outcome.kind is OutcomeKind.CONFLICT and outcome.existing is not None:
                refuse(TakenKey(outcome.existing, outcome.response))
                taken = WorkflowInterruptedError(run.workflow_id, "its key is taken")
                return Interrupted(taken, is_released=True)
            run.writes.check(outcome)
            if outcome.kind is OutcomeKind.RESUMED:
                own_span = run.workflow.last_span
                for stored in await self._services.storage.load_runs([run.workflow_id]):
                    run.load(stored)
                run.record_span(own_span)
        stream = StreamLog(run, self._result_waiters.wake)
        request = ResponseCommit(run, self._active, retention, stream)
        run.claimed.set(True)
        log_state(run, "claimed" if run.single_transaction is None else "begun")
        try:
            await handler(request)
        finally:
            if run.single_transaction is not None:
                await run.single_transaction.roll_back()
                # The run and its transaction refer to each other, and both are over.
                run.lift_limit()
        if request.ending is not None:
            return request.ending
        return run.stopped or Interrupted(
            WorkflowInterruptedError(run.workflow_id, "its handler sent no response")
        )

    async def _may_begin_unclaimed(self, run: Run) -> bool:
        """Tell whether a request is claimed together with its response, and not before.

        If it has a row already, the row decides, as for any other request.
        """
        if run.single_transaction is None:
            return False
        try:
            return await self._services.storage.get_workflow(run.workflow_id) is None
        except StorageUnavailableError:
            # The claim retries for longer.
            return False
