"""This process among the executors: its lease, and what it learns of the others."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from asgi_durable.concurrency.retry_log import is_worth_a_line
from asgi_durable.errors import StorageError
from asgi_durable.ids import new_id
from asgi_durable.storage.protocol import Beat, Runnable, Storage

__all__ = ["Executor"]

logger = logging.getLogger(__name__)

# What a process tells all others when it has left: there may be something to take over.
HAS_LEFT = "has-left"
RENAMING_POLL_SECONDS = 0.05
GOODBYE_SECONDS = 5.0
# How long the first requests wait for the first look; a database that is slower cannot tell.
FIRST_LOOK_SECONDS = 2.0


class Executor:
    """Keeps one executor alive, from a thread of its own.

    So a blocked event loop does not cost the lease. Where the executor is declared dead all
    the same, as the process was stopped for longer than its lease say, the process goes on as
    a new executor: what the old one owned is others' now, and its writes are refused.

    Args:
        storage: Where the executors are entered.
        lease_seconds: How long it counts as alive after its last beat.

    Attributes:
        id: The current executor's.
        runnable: What this process could take over; called on the thread.
        on_beat: Told what each beat has brought; called on the thread.
        on_message: Told what other executors send; called on any thread.
        on_renamed: Told when the process goes on as another executor; called on the thread.
        is_used: Tells whether anything is left that could stop it; called on the thread.
        on_dropped: Ends what works for it, where there is nothing; called on the thread.

    Invariant: none of these refers to the engine, but weakly. The thread would keep it alive.
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
        """Enter the executor among the living, and begin to beat."""
        await self._register(self.id)
        threading.Thread(target=self._run, name="asgi-durable-heartbeat", daemon=True).start()

    async def stop(self) -> None:
        """Beat no more, and leave the workflows to others at once."""
        self._is_over = True
        self._on_thread(self._cancel)
        # Shielded: the future is the thread's to set.
        await asyncio.shield(asyncio.wrap_future(self._ended))
        await self._say_goodbye()

    async def _say_goodbye(self) -> None:
        try:
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self._storage.retire(self.id)
                await self._storage.send(None, HAS_LEFT)
        except (StorageError, TimeoutError) as error:
            # The others will find it dead.
            logger.warning("The executor cannot say goodbye: %s", str(error) or "no answer")

    def beat_soon(self) -> None:
        """Beat now rather than when it is due; may be called from any thread."""
        self._on_thread(self._wake.set)

    @property
    def has_looked(self) -> bool:
        """True once it was looked for dead executors, or that was tried in vain."""
        return self._looked.done()

    async def wait_for_first_look(self) -> None:
        """Wait for that, but not for long."""
        # Not cancelled with its waiter: the future is the thread's to set.
        await asyncio.wait([asyncio.wrap_future(self._looked)], timeout=FIRST_LOOK_SECONDS)

    async def wait_until_renamed(self, old_id: str, timeout_seconds: float) -> bool:
        """Wait until the process goes on as another executor; return False if it does not.

        Args:
            old_id: The executor that was found to be dead.
            timeout_seconds: How long to wait.
        """
        give_up_at = time.monotonic() + timeout_seconds
        while self.id == old_id:
            self.beat_soon()
            left_seconds = give_up_at - time.monotonic()
            if left_seconds <= 0:
                return False
            await asyncio.sleep(min(RENAMING_POLL_SECONDS, left_seconds))
        return True

    def send(self, executor_id: str | None, message: str) -> None:
        """Send a hint to an executor, or to all others; may be called from any thread."""
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
            logger.debug("A hint was not sent: %s", error)

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
        # Invariant: set before it is asked whether all is over; `stop` does the reverse.
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
            try:
                async with asyncio.timeout(interval):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _end_unused(self) -> None:
        logger.warning(
            "The engine on %s was dropped, and never stopped: it ends now. Serve the application "
            "with its lifespan, or use 'async with durable:' or 'with durable:'",
            self._storage.name,
        )
        try:
            await self._say_goodbye()
            await self.on_dropped()
        except Exception:  # nobody is there that could be told otherwise
            logger.exception("The engine on %s has not ended in good order", self._storage.name)

    async def _beat(self) -> None:
        try:
            beat = await self._storage.beat(
                self.id, lease_seconds=self._lease_seconds, runnable=self.runnable()
            )
            if not beat.is_alive and not self._is_over:
                await self._go_on_as_another()
        except StorageError as error:
            self._failed_beats += 1
            if is_worth_a_line(self._failed_beats):
                logger.warning("The executor's lease cannot be renewed, trying again: %s", error)
        except Exception:  # a defect must not end the heartbeat
            self._failed_beats += 1
            if is_worth_a_line(self._failed_beats):
                logger.exception("The executor's lease cannot be renewed, trying again")
        else:
            self._failed_beats = 0
            self.on_beat(beat)

    async def _go_on_as_another(self) -> None:
        old_id, executor_id = self.id, new_id()
        # Invariant: registered before it is used. What is written for an executor that does
        # not exist is refused.
        await self._register(executor_id)
        self.id = executor_id
        self.on_renamed()
        logger.warning(
            "Executor %s was declared dead; its workflows are others' now. This process goes "
            "on as executor %s",
            old_id,
            executor_id,
        )
        await self._storage.retire(old_id)


async def _nothing() -> None:
    """There is nothing to end."""
