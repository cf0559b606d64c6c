"""A request that is one database transaction: its claim, the application's rows, its response."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, ExitStack
from typing import Any, Protocol

from asgi_durable.concurrency.thread_pool import SyncFunctionPool
from asgi_durable.engine.process.definitions import TransactionDefinition
from asgi_durable.engine.process.recorded_errors import infrastructure_error_in
from asgi_durable.engine.process.storage_retry import retry_while_unavailable
from asgi_durable.engine.runs.frame import Frame, entered
from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.steps.transaction_records import log_name
from asgi_durable.engine.stopping import OwnedElsewhereError, RunStopped
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

__all__ = ["SingleTransaction"]


class SingleTransaction:
    """The only transaction of a request, open from its call to the request's response.

    Nothing of the request is durable before its response is. So there is nothing to resume, and
    a retry does not wait for the end of a lease: it begins anew, or finds the response.

    Args:
        run: The request's run.
        wait_until: How long to wait for the transaction of a duplicate, by ``time.monotonic``.
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
        """True while there is something to commit with the response."""
        return self._held is not None

    def call(
        self, definition: TransactionDefinition, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """Call the transaction.

        Returns:
            A coroutine that returns its result, which is committed with the response.

        Raises:
            DurableUsageError: It was called before.
        """
        if self._is_called:
            raise self.refusal()
        self._is_called = True
        return self._call(definition, self._run.log.next_number(), args, kwargs)

    def refusal(self) -> DurableUsageError:
        """Return the error of a call that the request cannot make."""
        return DurableUsageError(
            f"{self._run.workflow.name!r} is a single transaction (single_transaction=True of its "
            "policy): it calls one durable.transaction, and no steps or workflows"
        )

    async def answer(self, end: FinishWorkflow) -> None:
        """Commit the transaction together with the request's response.

        Raises:
            StorageError: It is not known to be committed.
            WorkflowInterruptedError: This executor does not own the request.
        """
        # Invariant: nothing is committed that the code of a stopped run did.
        stopped = self._run.stopping.check()
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
            # Its commit may have succeeded all the same.
            found = await self._run.services.storage.get_workflow(end.workflow_id)
            if found is None or not is_same_end(found, end):
                raise

    async def roll_back(self) -> None:
        """Roll back the transaction, if it is open; it cannot be called after that."""
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
        run.stopping.raise_if_stopped()
        function = definition.function if definition.is_async else definition.call_decorated
        body = functools.partial(function, *args, **kwargs)
        observer = run.services.telemetry.observer
        with observer.step(run.workflow, definition.name, number, kind="transaction"):
            try:
                opening = functools.partial(self._open, definition, number, body)
                named = functools.partial(log_name, run, definition.name)
                return await retry_while_unavailable(
                    opening,
                    run.services.storage_retry_seconds,
                    named,
                )
            except SlotTakenError:
                raise await self._stop_as_taken() from None
            except SlotBusyError:
                busy = RequestInProgressError("another process handles it; try again")
                raise run.stop(busy) from None
            except Exception as error:
                outage = infrastructure_error_in(error)
                if outage is None:
                    raise
                raise run.stop(outage, retry_here=True) from error

    async def _stop_as_taken(self) -> RunStopped:
        """Stop the run, as another one owns the request; return the exception to raise."""
        run, services = self._run, self._run.services
        if await services.storage.get_workflow(run.workflow_id) is None:
            # A dead executor claims nothing; the process continues under another name soon.
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
        """Return a result as it would come back from the log."""
        return definition.values.write_result(value)[1]

    def _hold(self, held: _Held) -> None:
        """Keep a transaction open for the response.

        Raises:
            RunStopped: There will be no response. A thread is not stopped together with its run.
        """
        with self._guard:
            if self._is_over or self._run.stopped is not None:
                raise RunStopped
            # From here on the caller's context does not end it, whatever happens there.
            held.keep()
            self._held = held

    def _take(self) -> _Held | None:
        with self._guard:
            self._is_over = True
            held, self._held = self._held, None
        return held


class _Held(Protocol):
    """An open transaction, and the exit stack that ends it."""

    def keep(self) -> None:
        """Take the exit stack over from the block that opened it."""

    async def answer(self, end: FinishWorkflow) -> None:
        """Write the response, and commit."""

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
            await self._transaction.store_response(end)

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
                self._transaction.store_response(end)

        await self._threads.run(answer)

    async def roll_back(self) -> None:
        def roll_back() -> None:
            self._stack.__exit__(RunStopped, RunStopped(), None)

        await self._threads.run(roll_back)
