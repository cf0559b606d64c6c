"""Places of a program where its process can be killed, both sides of each commit among them."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from asgi_durable.storage.protocol import Storage
from asgi_durable.storage.writes import Outcome, Write


class KillPoints:
    """Writes down the places that the process reaches, and kills it at one of them.

    Args:
        ledger: The file to write to.
        kill_at: The place to die at; a place that does not exist to survive.
    """

    def __init__(self, ledger: Path, kill_at: str) -> None:
        self._ledger = ledger
        self._kill_at = kill_at
        self._numbers = itertools.count(1)

    def reach(self, place: str) -> None:
        """Note that this place was reached, and die there if it is the one."""
        with self._ledger.open("a") as ledger:
            ledger.write(f"{place}\n")
        if place == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, storage: Storage) -> None:
        """Make both sides of each commit a place from now on, named after what it holds."""
        commit, transaction = storage.commit, storage.transaction
        request_transaction = storage.request_transaction

        async def watched_commit(batch: Sequence[Write]) -> list[Outcome]:
            with self._both_sides(" ".join(type(write).__name__ for write in batch)):
                return await commit(batch)

        def watched(opening: Any, what: str) -> Any:
            @asynccontextmanager
            async def watched_transaction(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
                with ExitStack() as sides:
                    async with opening(*args, **kwargs) as opened:
                        yield opened
                        # All is written, and the COMMIT is what comes next.
                        sides.enter_context(self._both_sides(what))

            return watched_transaction

        storage.commit = watched_commit  # type: ignore[method-assign]
        storage.transaction = watched(transaction, "transaction")  # type: ignore[method-assign]
        storage.request_transaction = watched(  # type: ignore[method-assign]
            request_transaction, "request"
        )

    @contextmanager
    def _both_sides(self, what: str) -> Iterator[None]:
        number = next(self._numbers)
        self.reach(f"before commit {number}: {what}")
        yield
        self.reach(f"after commit {number}: {what}")
