"""Claims of keyed requests: each request runs once, and its duplicates get its response.

The engine knows nothing of HTTP: the body of such a workflow is a handler that the caller passes,
and its outcome is the response that the handler commits.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from asgi_durable.concurrency.backoff import Backoff
from asgi_durable.engine.requests.claim_results import (
    Cancelled,
    Claim,
    Claimed,
    Expired,
    FingerprintWanted,
    Finished,
    InProgress,
    KeyReused,
    RetryLater,
    Streaming,
    result_for_running,
    result_for_taken_key,
)
from asgi_durable.engine.requests.progress import DONE, Progress, progress_of, sleep_of
from asgi_durable.engine.requests.redirects import find_redirect
from asgi_durable.engine.requests.request_ids import RequestIds
from asgi_durable.engine.requests.request_run import Handler, Request, RequestRun
from asgi_durable.engine.requests.response_commit import ResponseCommit
from asgi_durable.engine.requests.response_streams import StreamDamagedError, Streams
from asgi_durable.engine.requests.sealed_responses import opened_response
from asgi_durable.engine.runs.active_runs import ActiveRuns, wait_for
from asgi_durable.engine.runs.services import Services
from asgi_durable.engine.stopping import CancelledElsewhereError, Interrupted, OwnedElsewhereError
from asgi_durable.engine.workflows.cancellation import Cancellation
from asgi_durable.engine.workflows.result_waiters import ResultWaiters
from asgi_durable.errors import StorageError, WorkflowNotFoundError
from asgi_durable.storage.records import ResponseRecord, WorkflowRecord

__all__ = [
    "Cancelled",
    "Claim",
    "Claimed",
    "Expired",
    "FingerprintWanted",
    "Finished",
    "InProgress",
    "KeyReused",
    "Progress",
    "Request",
    "Requests",
    "ResponseCommit",
    "RetryLater",
    "Streaming",
]

# How many duplicates wait at once in this process; the others must come back later.
MAX_DUPLICATES = 1000
MAX_DUPLICATES_OF_ONE = 256
FIRST_POLL_SECONDS = 0.025
LONGEST_POLL_SECONDS = 0.25


class Requests:
    """Claims requests and runs their handlers.

    Args:
        services: The parts that all runs share.
        active: The runs of this process.
        result_waiters: Waits for requests that run already.
        cancellation: Cancels requests.
        ids: See below.

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
        self._duplicates = _WaitingDuplicates()
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
        began_at = time.monotonic()
        if storage_retry_seconds is None:
            storage_retry_seconds = self._services.storage_retry_seconds
        rename_by, give_up_at = began_at + storage_retry_seconds, began_at + wait_seconds
        backoff: Backoff | None = None
        has_waited = False
        while True:
            request, claim = await self._claim_now(request, handler, rename_by, give_up_at)
            if not isinstance(claim, InProgress):
                break
            backoff = backoff or Backoff(FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS)
            result = await self._wait_for_duplicate(request, claim, give_up_at, backoff)
            if result is not None:
                claim = result
                break
            has_waited = True
        if not isinstance(claim, FingerprintWanted):
            outcome, workflow = claim.outcome, claim.workflow
            waited_seconds = time.monotonic() - began_at if has_waited else None
            if has_waited and isinstance(claim, Finished):
                outcome = "waited"
            observer = self._services.telemetry.observer
            observer.request_claimed(outcome, workflow, waited_seconds=waited_seconds)
        return claim

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

    async def _claim_now(
        self, request: Request, handler: Handler, rename_by: float, give_up_at: float
    ) -> tuple[Request, Claim]:
        """Claim a request, without waiting for a duplicate to finish.

        Returns:
            The request with the fingerprint of its earlier attempts, if there are any, and the
            result of its claim.
        """
        claim: Claim | None
        while True:
            active = self._active.find(request.workflow_id)
            if active is None:
                claim = await self._claim_in_run(request, handler, rename_by, give_up_at)
            else:
                await wait_for(active, active.claimed, asyncio.get_running_loop())
                if active is not self._active.find(request.workflow_id):
                    continue
                claim = result_for_running(active.workflow, request.fingerprint)
            same = _as_stored(request, claim) if isinstance(claim, KeyReused) else None
            if same is not None:
                request = same
            elif claim is not None:
                return request, claim

    async def _claim_in_run(
        self, request: Request, handler: Handler, rename_by: float, give_up_at: float
    ) -> Claim | None:
        """Claim a request in a new run; return ``None`` if the claim must be made again."""
        attempt = RequestRun(
            self._services,
            self._active,
            request,
            wait_until=give_up_at,
            on_recorded=self._result_waiters.wake,
        )
        run = attempt.run
        if not self._active.launch(run, attempt.execute(handler)):
            return None
        if await run.claimed.wait():
            return Claimed(run)
        end = await run.done.wait()
        if attempt.taken is not None:
            storage = self._services.storage
            return await result_for_taken_key(attempt.taken, request.fingerprint, storage)
        error = end.error if isinstance(end, Interrupted) else None
        if isinstance(error, CancelledElsewhereError):
            # The row says so, which this claim was stopped from reading.
            return None
        if isinstance(error, OwnedElsewhereError):
            # A dead executor claims nothing; the process continues under another name soon.
            executor, left_seconds = self._services.executor, rename_by - time.monotonic()
            if await executor.wait_until_renamed(run.executor_id, left_seconds):
                return None
        if isinstance(error, OwnedElsewhereError | StorageError):
            raise error
        # The run was stopped, for example with the engine. Its end says why.
        return Claimed(run)

    async def _wait_for_duplicate(
        self, request: Request, running: InProgress, give_up_at: float, backoff: Backoff
    ) -> InProgress | Streaming | None:
        """Wait until a claim may have another result, and return ``None``.

        Returns the result of the claim instead if the time is over, the duplicate sleeps, its
        response can be followed as a stream, or too many wait already.
        """
        workflow_id = request.workflow_id
        left_seconds = give_up_at - time.monotonic()
        if request.follows:
            if await self._may_follow(running.workflow):
                return Streaming(running.workflow)
            left_seconds = min(left_seconds, backoff.seconds)
        sleeps_until_us = await sleep_of(workflow_id, self._services.storage, self._active)
        if sleeps_until_us is not None or time.monotonic() >= give_up_at:
            return replace(running, sleeps_until_us=sleeps_until_us)
        with self._duplicates.waiting(workflow_id) as may_wait:
            if not may_wait:
                return running
            waiters, poll_seconds = self._result_waiters, backoff.next()
            await waiters.wait_while_it_runs(workflow_id, left_seconds, poll_seconds)
        return None

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


def _as_stored(request: Request, reused: KeyReused) -> Request | None:
    """Return the request with the stored fingerprint, if that is its own by another method."""
    if request.fingerprint_like is None:
        return None
    fingerprint = request.fingerprint_like(reused.fingerprint)
    return replace(request, fingerprint=fingerprint) if fingerprint == reused.fingerprint else None


class _WaitingDuplicates(Counter[str]):
    """Counts the duplicates that wait in this process by their request's id, up to a limit."""

    @contextmanager
    def waiting(self, workflow_id: str) -> Iterator[bool]:
        """Count one more inside; yield False, and count nothing, if too many wait."""
        if self[workflow_id] >= MAX_DUPLICATES_OF_ONE or self.total() >= MAX_DUPLICATES:
            yield False
            return
        self[workflow_id] += 1
        try:
            yield True
        finally:
            self[workflow_id] -= 1
            if not self[workflow_id]:
                del self[workflow_id]
