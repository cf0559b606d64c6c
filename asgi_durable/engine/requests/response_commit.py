"""Committing the response of a request, or leaving it for its retry."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from asgi_durable.engine.process.settings import Retention
from asgi_durable.engine.requests.redirects import redirect_writes
from asgi_durable.engine.requests.response_streams import StreamLog
from asgi_durable.engine.requests.sealed_responses import sealed_response
from asgi_durable.engine.runs.active_runs import ActiveRuns
from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.runs.run_end import Completed, RunEnd
from asgi_durable.engine.stopping import Interrupted, RunStopped
from asgi_durable.errors import StorageError, WorkflowInterruptedError
from asgi_durable.storage.records import ResponseRecord, WorkflowState
from asgi_durable.storage.writes import (
    DONE,
    FinishWorkflow,
    ForgetRequest,
    OutcomeKind,
    ReleaseWorkflow,
    SetFingerprint,
    StartWorkflow,
    Write,
)

__all__ = ["ResponseCommit", "end_without_response"]

logger = logging.getLogger(__name__)


class ResponseCommit:
    """Commits the response of one attempt of a request, and ends its run.

    Args:
        run: The request's run.
        active: The runs of this process.
        retention: How long the response is stored.
        on_recorded: Called with the request's id after each chunk of its response that is
            recorded as a stream.

    Attributes:
        run_end: How the run ended, once the response is committed or the request left.
    """

    def __init__(
        self,
        run: Run,
        active: ActiveRuns,
        retention: Retention,
        on_recorded: Callable[[str], None],
    ) -> None:
        self._run = run
        self._active = active
        self._retention = retention
        self._has_durable_log = False
        self._is_given_up = False
        self._on_recorded = on_recorded
        self._stream: StreamLog | None = None
        self.run_end: RunEnd | None = None

    @property
    def workflow_id(self) -> str:
        """The request's id."""
        return self._run.workflow_id

    @property
    def stream(self) -> StreamLog:
        """Records the response as a stream."""
        if self._stream is None:
            self._stream = StreamLog(self._run, self._on_recorded)
        return self._stream

    @property
    def has_recorded(self) -> bool:
        """True once the request has made a durable call."""
        if self._run.single_transaction is not None:
            # A failed transaction is rolled back, and leaves nothing.
            return self.holds_transaction
        return self._run.has_recorded

    @property
    def holds_transaction(self) -> bool:
        """True while the request has an open transaction, which only its response commits."""
        single = self._run.single_transaction
        return single is not None and single.is_held

    @property
    def can_respond_again(self) -> bool:
        """True if a retry has the same response although this one could not be committed.

        The log was durable before: the retry finds everything that the response is made of.
        """
        outbox = self._run.outbox
        if outbox is not None and not outbox.is_empty:
            # A client with a response does not retry, and its workflows would never start.
            return False
        return self._has_durable_log and self.has_recorded

    @property
    def has_final_response(self) -> bool:
        """True once the handler has called its response final, whatever its status."""
        return self._run.has_final_response

    @property
    def attempts(self) -> int:
        """How often the request was begun or continued, this time included."""
        return self._run.workflow.attempts

    @property
    def is_owned_elsewhere(self) -> bool:
        """True once another executor owns the request, or has its outcome."""
        stopped = self._run.stopped
        return stopped is not None and stopped.is_owned_elsewhere

    def calling_on_stop(self, callback: Callable[[], None]) -> AbstractContextManager[None]:
        """Call a function when the engine begins to stop, while inside."""
        return self._active.calling_on_drain(callback)

    def give_up(self) -> None:
        """Make the next response final, whatever is recorded."""
        self._is_given_up = True
        self._run.mark_response_final()

    def set_fingerprint(self, fingerprint: str) -> None:
        """Replace the placeholder by the fingerprint, which is known now.

        The next durable call waits until that is durable, and so does the response.
        """
        run = self._run
        pending = run.workflow.fingerprint
        if run.closed or run.stopped is not None or pending is None:
            return
        run.set_fingerprint(fingerprint)
        # A run that stops here notices it at its next write.
        with contextlib.suppress(RunStopped):
            run.writes.submit(
                SetFingerprint(run.workflow_id, run.executor_id, pending, fingerprint)
            )

    async def finish(
        self,
        status_code: int,
        headers: bytes,
        body: bytes | None,
        stream_end: int | None = None,
        *,
        may_compress: bool = True,
    ) -> None:
        """Commit the response: the request's outcome, from now on until it expires.

        Args:
            status_code: The response's status.
            headers: Its headers, encoded.
            body: Its body; ``None`` if it is not stored, or is recorded as a stream.
            stream_end: The end of that stream, in bytes.
            may_compress: False if the body is compressed already.

        Raises:
            StorageError: It is not known to be committed.
            WorkflowInterruptedError: Another executor owns the request.
            NonDeterministicWorkflowError: The handler left the request's log.
        """
        run = self._run
        workflow_id = run.workflow_id
        finished_at_us = time.time_ns() // 1000
        expires_at_us, forgotten_at_us = self._retention.ends_of(finished_at_us)
        response = ResponseRecord(
            workflow_id=workflow_id,
            status_code=status_code,
            headers=headers,
            body=body,
            expires_at_us=expires_at_us,
            forgotten_at_us=forgotten_at_us,
            stream_end=stream_end,
        )
        unused = None if self._is_given_up else run.log.check_end()
        if unused is not None:
            raise unused.error
        sealer = run.services.registry.sealer
        await self._commit_end(
            FinishWorkflow(
                workflow_id=workflow_id,
                executor_id=run.executor_id,
                state=WorkflowState.SUCCESS,
                output=None,
                error=None,
                finished_at_us=finished_at_us,
                response=sealed_response(sealer, response, may_compress=may_compress),
                starts=run.outbox.close() if run.outbox is not None else (),
            )
        )
        if run.outbox is not None:
            run.outbox.on_committed()
        state = WorkflowState.SUCCESS
        run.services.telemetry.observer.workflow_ended(run.workflow, state.value)
        self._close(Completed(run.workflow.name, state, None, None), f"responded {status_code}")

    async def leave_for_retry(self, after_seconds: float = 0.0) -> None:
        """Commit the log so far; a retry of the request continues after it, in any process.

        Args:
            after_seconds: How long retries are refused.
        """
        run = self._run
        retry_at_us = None
        if after_seconds > 0:
            retry_at_us = time.time_ns() // 1000 + round(after_seconds * 1_000_000)
        release = ReleaseWorkflow(run.workflow_id, run.executor_id, retry_at_us)
        if run.single_transaction is not None:
            await run.single_transaction.roll_back()
            if retry_at_us is not None:
                # The row is needed only to refuse a retry that comes too early.
                run.writes.submit(StartWorkflow(run.workflow))
        # In any case: a COMMIT in SQL may have left a row.
        await self._commit(release)
        reason = "it failed and waits for its retry"
        interrupted = WorkflowInterruptedError(run.workflow_id, reason)
        self._close(Interrupted(interrupted, is_released=True), "left for its retry")

    def stop(self, reason: str) -> None:
        """Let the run record nothing more, whatever the handler does about it."""
        interrupted = WorkflowInterruptedError(self._run.workflow_id, reason)
        self._run.stop(interrupted, retry_here=True)

    async def leave_after_stop(self) -> None:
        """Leave the request for its retry after a stop, without a response.

        Nothing waits until the log is durable: the retry finds the durable part.
        """
        run = self._run
        if run.single_transaction is not None:
            await run.single_transaction.roll_back()
            outcome = DONE
        else:
            outcome = await run.writes.commit(ReleaseWorkflow(run.workflow_id, run.executor_id))
        # Otherwise the next sweep finds it.
        if outcome.kind is OutcomeKind.DONE:
            interrupted = WorkflowInterruptedError(run.workflow_id, "its client has disconnected")
            self._close(Interrupted(interrupted, is_released=True), "left for its retry")

    async def forget(self) -> None:
        """Take the claim back: nothing was recorded, and the next attempt begins anew."""
        await self._forget([])

    async def forget_redirected(self, status_code: int, headers: bytes, body: bytes | None) -> None:
        """Take the claim of a redirected request back: its client sends it elsewhere, with its key.

        The redirect is stored, in case the client sends the first request again.

        Args:
            status_code: The redirect's status.
            headers: Its headers, encoded.
            body: Its body; ``None`` if it is not stored.
        """
        await self._forget(redirect_writes(self._run, status_code, headers, body, self._retention))

    async def _forget(self, redirect: Sequence[Write]) -> None:
        run = self._run
        if run.single_transaction is not None:
            await run.single_transaction.roll_back()
        # Invariant: the redirect is stored before the key is free. A stored one stays as it is.
        await asyncio.gather(*(run.writes.commit(write) for write in redirect))
        if run.single_transaction is None:
            await self._commit(ForgetRequest(run.workflow_id, run.executor_id))
        reason = "it was refused before it began"
        interrupted = WorkflowInterruptedError(run.workflow_id, reason)
        self._close(Interrupted(interrupted, is_released=True), "forgotten")

    def log_state(self, state: str) -> None:
        """Log the new state of the request."""
        workflow = self._run.workflow
        logger.debug(
            "Request %s, attempt %d, request id %s: %s",
            workflow.workflow_id,
            workflow.attempts,
            workflow.request_id,
            state,
        )

    async def _commit_end(self, end: FinishWorkflow) -> None:
        """Make the response durable, together with the request's transaction if it has one."""
        single = self._run.single_transaction
        if single is None:
            self._has_durable_log = self._run.writes.is_all_durable()
            await self._commit(end)
        elif single.is_held:
            await single.answer(end)
        else:
            # Also in one commit: the request has not called its transaction, or that has failed.
            self._run.writes.submit(StartWorkflow(self._run.workflow))
            await self._commit(end)

    async def _commit(self, write: Write) -> None:
        """Make a write durable, and all writes before it."""
        try:
            self._run.writes.submit(write)
            await self._run.writes.wait_durable()
        except RunStopped:
            stopped = self._run.stopped
            raise (stopped.error if stopped is not None else StorageError()) from None

    def _close(self, end: RunEnd, state: str) -> None:
        """End the run, although its handler may still run."""
        self.log_state(state)
        # Later calls of the handler, for example in a background task, are not the request's.
        self.run_end = end
        self._run.end(end)
        self._active.release(self._run)
        # Duplicates wait for the response, and not for the rest of the handler.
        self._active.on_ended(self._run)


def end_without_response(run: Run) -> RunEnd:
    """Return how a request's run ends if its handler neither responded nor left the request."""
    error = WorkflowInterruptedError(run.workflow_id, "its handler sent no response")
    return run.stopped or Interrupted(error)
