"""A request that is one database transaction: its claim, the application's rows, its answer."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from asgi_durable.concurrency.thread_pool import SyncFunctionPool
from asgi_durable.engine.process.definitions import TransactionDefinition
from asgi_durable.engine.process.storage_retry import retry_while_unavailable
from asgi_durable.engine.replay.results import infrastructure_error_in, named
from asgi_durable.engine.runs.frame import Frame, entered
from asgi_durable.engine.runs.run_end import OwnedElsewhereError, RunStopped
from asgi_durable.errors import DurableUsageError, StorageUnavailableError
from asgi_durable.request_errors import RequestInProgressError
from asgi_durable.storage.transaction_port import (
    BlockingRequestTransaction,
    RequestSlot,
    RequestTransaction,
    SlotBusyError,
    SlotTakenError,
)
from asgi_durable.storage.writes import FinishWorkflow, is_same_end

if TYPE_CHECKING:
    from asgi_durable.engine.runs.run import Run

__all__ = ["SingleTransaction"]


class SingleTransaction:
    """The only transaction of a request, open from its call to the request's answer.

    Nothing of the request is durable before its answer is, so there is nothing to resume, and
    nobody has to wait for the end of a lease: who asks again begins anew, or finds the answer.

    Args:
        run: The request's.
        wait_until: For how long a twin's transaction is waited for, by ``time.monotonic``.
    """

    def __init__(self, run: Run, wait_until: float) -> None:
        self._run = run
        self._wait_until = wait_until
        self._is_called = False
        self._attempts = 0
        self._guard = threading.Lock()
        self._is_over = False
        self._held: _Held | None = None

    @property
    def is_held(self) -> bool:
        """True while there is something to commit with the answer."""
        return self._held is not None

    def call(
        self, definition: TransactionDefinition, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """Call the transaction; a coroutine that returns its result, committed with the answer.

        Raises:
            DurableUsageError: There was one before.
        """
        if self._is_called:
            raise self.refusal()
        self._is_called = True
        number = self._run.calls
        self._run.calls += 1
        return self._call(definition, number, args, kwargs)

    def refusal(self) -> DurableUsageError:
        """Return the error of a call that the request cannot make."""
        return DurableUsageError(
            f"{self._run.workflow.name!r} is a single transaction (single_transaction=True of its "
            "policy): it calls one durable.transaction, and no steps or workflows"
        )

    async def answer(self, end: FinishWorkflow) -> None:
        """Commit what is held together with the request's answer.

        Raises:
            StorageError: It is not known to be committed.
            WorkflowInterruptedError: The request is not this executor's.
        """
        # Invariant: what the code of a run does that was stopped is not committed.
        stopped = self._run.interruption()
        if stopped is not None:
            raise stopped.error
        held = self._take()
        if held is None:
            raise OwnedElsewhereError(end.workflow_id, "its transaction was rolled back")
        try:
            await held.answer(end)
        except SlotTakenError as error:
            await self._stop_as_taken()
            raise OwnedElsewhereError(end.workflow_id) from error
        except StorageUnavailableError:
            # Its commit may have been done all the same.
            found = await self._run.services.storage.get_workflow(end.workflow_id)
            if found is None or not is_same_end(found, end):
                raise

    async def roll_back(self) -> None:
        """Take back what is held, if anything is; nothing is from then on."""
        held = self._take()
        if held is not None:
            await held.roll_back()

    async def _call(
        self,
        definition: TransactionDefinition,
        number: int,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        definition.prepare()
        run = self._run
        run.refuse_if_stopped()
        function = definition.function if definition.is_async else definition.call_decorated
        body = functools.partial(function, *args, **kwargs)
        observer = run.services.telemetry.observer
        with observer.step(run.workflow, definition.name, number, kind="transaction"):
            try:
                opening = functools.partial(self._open, definition, number, body)
                return await retry_while_unavailable(
                    opening, run.services.storage_retry_seconds, lambda: named(run, definition.name)
                )
            except SlotTakenError:
                raise await self._stop_as_taken() from None
            except SlotBusyError:
                busy = RequestInProgressError("another process is at it; try again")
                raise run.stop(busy) from None
            except Exception as error:
                outage = infrastructure_error_in(error)
                if outage is None:
                    raise
                raise run.stop(outage, retry_here=True) from error

    async def _stop_as_taken(self) -> RunStopped:
        """Stop the run, as what has the request tells what becomes of it; return what to raise."""
        run, services = self._run, self._run.services
        if await services.storage.get_workflow(run.workflow_id) is None:
            # A dead executor claims nothing; the process goes on as another one soon.
            await services.executor.wait_until_renamed(
                run.executor_id, services.storage_retry_seconds
            )
        return run.stop(OwnedElsewhereError(run.workflow_id))

    async def _open(
        self, definition: TransactionDefinition, number: int, body: Callable[[], Any]
    ) -> Any:
        """Open the transaction, run its body, and hold it."""
        self._attempts += 1
        if self._attempts > 1:
            self._run.services.telemetry.observer.attempt_begins(self._attempts)
        if not definition.is_async:
            call = functools.partial(self._open_in_thread, definition, number, body)
            return await definition.thread.run(call)
        run, level = self._run, definition.isolation_level
        async with AsyncExitStack() as stack:
            opening = run.services.storage.request_transaction(self._slot(), isolation_level=level)
            transaction = await stack.enter_async_context(opening)
            with entered(Frame(run.services, run, definition.name, number, transaction.session)):
                value = self._normal(definition, await body())
            await transaction.flush()
            self._hold(_HeldByTask(transaction, stack))
        return value

    def _open_in_thread(
        self, definition: TransactionDefinition, number: int, body: Callable[[], Any]
    ) -> Any:
        run, level = self._run, definition.isolation_level
        with ExitStack() as stack:
            opening = run.services.storage.blocking_request_transaction(
                self._slot(), isolation_level=level
            )
            transaction = stack.enter_context(opening)
            session = transaction.session
            with entered(
                Frame(run.services, run, definition.name, number, session, in_thread=True)
            ):
                value = self._normal(definition, body())
            transaction.flush()
            self._hold(_HeldByThreads(transaction, stack, run.services.registry.threads))
        return value

    def _slot(self) -> RequestSlot:
        wait_seconds = max(0.0, self._wait_until - time.monotonic())
        return RequestSlot(workflow=self._run.workflow, wait_seconds=wait_seconds)

    def _normal(self, definition: TransactionDefinition, value: object) -> Any:
        """Return a result as it would come back from the log, as a recorded one does."""
        return definition.values.write_result(value)[1]

    def _hold(self, held: _Held) -> None:
        """Keep a transaction open for the answer.

        Raises:
            RunStopped: There will be none. A thread is not stopped with the run it works for.
        """
        with self._guard:
            if self._is_over or self._run.stopped is not None:
                raise RunStopped
            # From here on it is not the caller's to end, whatever becomes of that.
            held.keep()
            self._held = held

    def _take(self) -> _Held | None:
        with self._guard:
            self._is_over = True
            held, self._held = self._held, None
        return held


class _Held(Protocol):
    """An open transaction, and the context that ends it."""

    def keep(self) -> None:
        """Take the context over from the block that has opened it."""

    async def answer(self, end: FinishWorkflow) -> None:
        """Write the answer, and commit."""

    async def roll_back(self) -> None:
        """Roll back."""


class _HeldByTask:
    def __init__(self, transaction: RequestTransaction, stack: AsyncExitStack) -> None:
        self._transaction = transaction
        self._stack = stack

    def keep(self) -> None:
        self._stack = self._stack.pop_all()

    async def answer(self, end: FinishWorkflow) -> None:
        async with self._stack:
            await self._transaction.answer(end)

    async def roll_back(self) -> None:
        stopped = RunStopped()
        await self._stack.__aexit__(RunStopped, stopped, None)


class _HeldByThreads:
    def __init__(
        self, transaction: BlockingRequestTransaction, stack: ExitStack, threads: SyncFunctionPool
    ) -> None:
        self._transaction = transaction
        self._stack = stack
        self._threads = threads

    def keep(self) -> None:
        self._stack = self._stack.pop_all()

    async def answer(self, end: FinishWorkflow) -> None:
        def answer() -> None:
            with self._stack:
                self._transaction.answer(end)

        await self._threads.run(answer)

    async def roll_back(self) -> None:
        def roll_back() -> None:
            self._stack.__exit__(RunStopped, RunStopped(), None)

        await self._threads.run(roll_back)
