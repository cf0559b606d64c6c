"""What the handler of a request commits its answer with."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from asgi_durable.engine.process.settings import Retention
from asgi_durable.engine.requests.redirects import redirect_writes
from asgi_durable.engine.requests.request import note
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

__all__ = ["ResponseCommit"]


class ResponseCommit:
    """What a request's handler commits its answer with."""

    def __init__(
        self, run: Run, active: ActiveRuns, retention: Retention, stream: StreamLog
    ) -> None:
        self._run = run
        self._active = active
        self._retention = retention
        self._has_durable_log = False
        self._is_given_up = False
        self.stream = stream
        self.ending: RunEnd | None = None

    @property
    def workflow_id(self) -> str:
        """The request's id."""
        return self._run.workflow_id

    @property
    def has_recorded(self) -> bool:
        """True once something durable was called on behalf of the request."""
        if self._run.single_transaction is not None:
            # One that has failed is rolled back, and leaves nothing.
            return self.holds_transaction
        return self._run.has_recorded

    @property
    def holds_transaction(self) -> bool:
        """True while what the request has done is committed by its answer alone."""
        single = self._run.single_transaction
        return single is not None and single.is_held

    @property
    def can_answer_again(self) -> bool:
        """True if a retry comes to the same answer although this one could not be committed.

        The log was durable before: the retry finds all that the answer is made of.
        """
        outbox = self._run.outbox
        if outbox is not None and not outbox.is_empty:
            # Who is answered does not ask again, and nothing of it would be started.
            return False
        return self._has_durable_log and self.has_recorded

    @property
    def has_final_response(self) -> bool:
        """True once the handler has said that its answer is final, whatever its status."""
        return self._run.has_final_response

    @property
    def attempts(self) -> int:
        """How often the request was begun or gone on with, this time included."""
        return self._run.workflow.attempts

    @property
    def is_owned_elsewhere(self) -> bool:
        """True once another executor has the request, or its outcome."""
        stopped = self._run.stopped
        return stopped is not None and stopped.is_owned_elsewhere

    def telling_of_stop(self, tell: Callable[[], None]) -> AbstractContextManager[None]:
        """Call *tell* once the engine begins to stop, while inside."""
        return self._active.calling_on_drain(tell)

    def give_up(self) -> None:
        """Make the next answer final, whatever is recorded."""
        self._is_given_up = True
        self._run.mark_response_final()

    def set_fingerprint(self, fingerprint: str) -> None:
        """Put the fingerprint, now that it is known, in the place of what stands for it.

        What is called next waits until that is durable, and so does the answer.
        """
        run = self._run
        pending = run.workflow.fingerprint
        if run.closed or run.stopped is not None or pending is None:
            return
        run.set_fingerprint(fingerprint)
        # A run that is stopped by that notices in what it writes next.
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
        """Commit the answer: the request's outcome, from now on until it expires.

        Args:
            status_code: Of the answer.
            headers: Encoded.
            body: ``None`` if it is not kept, or is recorded as a stream.
            stream_end: Where that ends.
            may_compress: False if the body is compressed already.

        Raises:
            StorageError: It is not known to be committed.
            WorkflowInterruptedError: The request is not this executor's any more.
            NonDeterministicWorkflowError: The handler left the request's log.
        """
        run = self._run
        finished_at_us = time.time_ns() // 1000
        expires_at_us, forgotten_at_us = self._retention.ends_of(finished_at_us)
        answer = ResponseRecord(
            workflow_id=run.workflow_id,
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
                workflow_id=run.workflow_id,
                executor_id=run.executor_id,
                state=WorkflowState.SUCCESS,
                output=None,
                error=None,
                finished_at_us=finished_at_us,
                response=sealed_response(sealer, answer, may_compress=may_compress),
                starts=run.outbox.close() if run.outbox is not None else (),
            )
        )
        if run.outbox is not None:
            run.outbox.on_committed()
        state = WorkflowState.SUCCESS
        run.services.telemetry.observer.workflow_ended(run.workflow, state.value)
        self._close(Completed(run.workflow.name, state, None, None), f"answered {status_code}")

    async def leave_for_retry(self, after_seconds: float = 0.0) -> None:
        """Commit what is recorded so far; a retry of the request goes on after it, anywhere.

        Args:
            after_seconds: How long a retry is refused.
        """
        run = self._run
        retry_at_us = None
        if after_seconds > 0:
            retry_at_us = time.time_ns() // 1000 + round(after_seconds * 1_000_000)
        release = ReleaseWorkflow(run.workflow_id, run.executor_id, retry_at_us)
        if run.single_transaction is not None:
            await run.single_transaction.roll_back()
            if retry_at_us is not None:
                # There is a row only where it has to be known that it is too soon.
                run.writes.submit(StartWorkflow(run.workflow))
        # In any case: a COMMIT in SQL may have left a row.
        await self._commit(release)
        reason = "it failed and waits for its retry"
        interrupted = WorkflowInterruptedError(run.workflow_id, reason)
        self._close(Interrupted(interrupted, is_released=True), "left for its retry")

    def stop(self, reason: str) -> None:
        """Let nothing more be recorded: not what the handler does about it either."""
        interrupted = WorkflowInterruptedError(self._run.workflow_id, reason)
        self._run.stop(interrupted, retry_here=True)

    async def let_go(self) -> None:
        """Do the same where the run was stopped, and nobody is answered.

        It need not be known what is durable: the retry finds what is.
        """
        run = self._run
        if run.single_transaction is not None:
            await run.single_transaction.roll_back()
            outcome = DONE
        else:
            outcome = await run.writes.commit(ReleaseWorkflow(run.workflow_id, run.executor_id))
        # Else it is left to the next sweep.
        if outcome.kind is OutcomeKind.DONE:
            interrupted = WorkflowInterruptedError(run.workflow_id, "its client has gone")
            self._close(Interrupted(interrupted, is_released=True), "left for its retry")

    async def forget(self) -> None:
        """Take the claim back: nothing was recorded, and the next try starts afresh."""
        await self._forget([])

    async def forget_redirected(self, status_code: int, headers: bytes, body: bytes | None) -> None:
        """Do the same for a request that its client is to send elsewhere, with its key.

        The redirect is kept beside it, for when the client sends the first request again.

        Args:
            status_code: Of the redirect.
            headers: Encoded.
            body: ``None`` if it is not kept.
        """
        await self._forget(redirect_writes(self._run, status_code, headers, body, self._retention))

    async def _forget(self, redirect: Sequence[Write]) -> None:
        run = self._run
        if run.single_transaction is not None:
            await run.single_transaction.roll_back()
        # Invariant: it is kept before the key is free. What is there already is left as it is.
        await asyncio.gather(*(run.writes.commit(write) for write in redirect))
        if run.single_transaction is None:
            await self._commit(ForgetRequest(run.workflow_id, run.executor_id))
        reason = "it was refused before it began"
        interrupted = WorkflowInterruptedError(run.workflow_id, reason)
        self._close(Interrupted(interrupted, is_released=True), "forgotten")

    async def _commit_end(self, end: FinishWorkflow) -> None:
        """Make the answer durable, and with it what the request has done."""
        single = self._run.single_transaction
        if single is None:
            self._has_durable_log = self._run.writes.is_all_durable()
            await self._commit(end)
        elif single.is_held:
            await single.answer(end)
        else:
            # In one commit as well: it has not called its transaction, or that has failed.
            self._run.writes.submit(StartWorkflow(self._run.workflow))
            await self._commit(end)

    async def _commit(self, write: Write) -> None:
        """Make a write durable, and all that was written before it."""
        try:
            self._run.writes.submit(write)
            await self._run.writes.wait_durable()
        except RunStopped:
            stopped = self._run.stopped
            raise (stopped.error if stopped is not None else StorageError()) from None

    def _close(self, ending: RunEnd, what: str) -> None:
        note(self._run, what)
        # What the handler calls from now on, in a background task say, is not the request's.
        self.ending = ending
        self._run.end(ending)
        self._active.release(self._run)
        # Twins wait for the answer, not for what follows it.
        self._active.on_ended(self._run)
