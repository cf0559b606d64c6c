"""This process as an executor: its lease, its heartbeat, and messages to other executors."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

import anyio

from asgi_durable.concurrency.backoff import is_worth_logging
from asgi_durable.errors import StorageError
from asgi_durable.ids import new_id
from asgi_durable.storage.protocol import Beat, Runnable, Storage

__all__ = ["Executor"]

logger = logging.getLogger(__name__)

# Message of a process that has left to all others: it may have left workflows to take over.
HAS_LEFT = "has-left"
RENAMING_POLL_SECONDS = 0.05
GOODBYE_SECONDS = 5.0
# How long the first requests wait until dead executors have been looked for.
FIRST_LOOK_SECONDS = 2.0


class Executor:
    """Keeps one executor alive, from a thread of its own.

    So a blocked event loop does not cost the lease. If the executor is declared dead all the
    same, for example because the process was stopped for longer than its lease, the process
    continues as a new executor: others own the old one's workflows, and its writes are refused.

    Args:
        storage: Records the executors.
        lease_seconds: How long the executor counts as alive after its last heartbeat.

    Attributes:
        id: The id of the current executor.
        runnable: Returns the work that this process can take over; called on the thread.
        on_beat: Called with the result of each heartbeat, on the thread.
        on_message: Called with each message of another executor, on any thread.
        on_renamed: Called when the process continues as a new executor, on the thread.
        is_used: Tells whether anything is left that could stop the executor; called on the
            thread.
        on_dropped: Closes the engine's resources once nothing is left; called on the thread.

    Invariant: all of these refer to the engine weakly. The thread would keep it alive otherwise.
    """

    def __init__(self, storage: Storage, *, lease_seconds: float) -> None:
        self.id = new_id()
        self.runnable: Callable[[], Runnable] = lambda: Runnable(names=frozenset())
        self.on_beat: Callable[[Beat], None] = lambda _: None
        self.on_message: Callable[[str], None] = lambda _: None
        self.on_renamed: Callable[[], None] = lambda: None
        self.is_used: Callable[[], bool] = lambda: True
        self.on_dropped: Callable[[], Coroutine[Any, Any, None]] = _nothing
        self._storage = storage
        self._lease_seconds = lease_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._is_over = False
        self._failed_beats = 0
        self._ended: Future[None] = Future()
        self._looked: Future[None] = Future()
        self._sending: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Register the executor, and start its heartbeat."""
        await self._register(self.id)
        threading.Thread(target=self._run, name="asgi-durable-heartbeat", daemon=True).start()

    async def stop(self) -> None:
        """End the heartbeat, and leave the workflows to other executors at once."""
        self._is_over = True
        self._on_thread(self._cancel)
        # Shielded, because the thread sets this future.
        await asyncio.shield(asyncio.wrap_future(self._ended))
        await self._say_goodbye()

    async def _say_goodbye(self) -> None:
        try:
            # Not anyio's: its scope would also cancel the clean-up of the database connection.
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self._storage.retire(self.id)
                await self._storage.send(None, HAS_LEFT)
        except (StorageError, TimeoutError) as error:
            # The others will find it dead after its lease.
            logger.warning("The executor cannot say goodbye: %s", str(error) or "no response")

    def beat_soon(self) -> None:
        """Send the next heartbeat now; callable on any thread."""
        self._on_thread(self._wake.set)

    @property
    def has_looked(self) -> bool:
        """True once dead executors have been looked for, even if the attempt failed."""
        return self._looked.done()

    async def wait_for_first_look(self) -> None:
        """Wait until dead executors have been looked for, but not for long."""
        # Not cancelled with its waiter, because the thread sets this future.
        await asyncio.wait([asyncio.wrap_future(self._looked)], timeout=FIRST_LOOK_SECONDS)

    async def wait_until_renamed(self, old_id: str, timeout_seconds: float) -> bool:
        """Wait until the process continues as a new executor.

        Args:
            old_id: The executor that was declared dead.
            timeout_seconds: How long to wait.

        Returns:
            False if it is still the old executor after that time.
        """
        give_up_at = time.monotonic() + timeout_seconds
        while self.id == old_id:
            self.beat_soon()
            left_seconds = give_up_at - time.monotonic()
            if left_seconds <= 0:
                return False
            await anyio.sleep(min(RENAMING_POLL_SECONDS, left_seconds))
        return True

    def send(self, executor_id: str | None, message: str) -> None:
        """Send a message to one executor, or to all others; callable on any thread.

        Messages are hints: they may get lost.
        """
        self._on_thread(lambda: self._send_soon(executor_id, message))

    def _on_thread(self, call: Callable[[], object]) -> None:
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(call)
            except RuntimeError:
                logger.debug("The heartbeat is over")

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _send_soon(self, executor_id: str | None, message: str) -> None:
        task = asyncio.get_running_loop().create_task(self._send(executor_id, message))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, executor_id: str | None, message: str) -> None:
        try:
            await self._storage.send(executor_id, message)
        except StorageError as error:
            logger.debug("A message was not sent: %s", error)

    def _receive(self, message: str) -> None:
        if message == HAS_LEFT:
            self.beat_soon()
        else:
            self.on_message(message)

    def _run(self) -> None:
        try:
            asyncio.run(self._beat_until_over())
        except asyncio.CancelledError:
            logger.debug("The heartbeat is over")
        finally:
            self._ended.set_result(None)

    async def _register(self, executor_id: str) -> None:
        await self._storage.register(
            executor_id, lease_seconds=self._lease_seconds, on_message=self._receive
        )

    async def _beat_until_over(self) -> None:
        self._task = asyncio.current_task()
        # Invariant: set before the flag is read; `stop` sets the flag before it reads the loop.
        self._loop = asyncio.get_running_loop()
        while not self._is_over:
            if not self.is_used():
                self._is_over = True
                await self._end_unused()
                return
            self._wake.clear()
            await self._beat()
            if not self._looked.done():
                self._looked.set_result(None)
            interval = min(self._storage.beat_interval_seconds, self._lease_seconds / 6)
            with anyio.move_on_after(interval):
                await self._wake.wait()

    async def _end_unused(self) -> None:
        logger.warning(
            "The engine on %s was dropped, and never stopped: it ends now. Serve the application "
            "with its lifespan, or use 'async with durable:' or 'with durable:'",
            self._storage.name,
        )
        try:
            await self._say_goodbye()
            await self.on_dropped()
        except Exception:  # no caller is left that could see it
            logger.exception("The engine on %s could not be closed completely", self._storage.name)

    async def _beat(self) -> None:
        try:
            beat = await self._storage.beat(
                self.id, lease_seconds=self._lease_seconds, runnable=self.runnable()
            )
            if not beat.is_alive and not self._is_over:
                await self._continue_as_new_executor()
        except StorageError as error:
            self._failed_beats += 1
            if is_worth_logging(self._failed_beats):
                logger.warning("The executor's lease cannot be renewed, trying again: %s", error)
        except Exception:  # a defect must not end the heartbeat
            self._failed_beats += 1
            if is_worth_logging(self._failed_beats):
                logger.exception("The executor's lease cannot be renewed, trying again")
        else:
            self._failed_beats = 0
            self.on_beat(beat)

    async def _continue_as_new_executor(self) -> None:
        old_id, executor_id = self.id, new_id()
        # Invariant: registered before it is used. The storage refuses the writes of an executor
        # that does not exist.
        await self._register(executor_id)
        self.id = executor_id
        self.on_renamed()
        logger.warning(
            "Executor %s was declared dead; other executors own its workflows now. This process "
            "continues as executor %s",
            old_id,
            executor_id,
        )
        await self._storage.retire(old_id)


async def _nothing() -> None:
    """Close nothing."""
