"""Workflows that nobody runs, as this process has no function of their name."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from asgi_durable.engine.process.log_text import workflows_text
from asgi_durable.engine.process.registry import Registry
from asgi_durable.errors import StorageError
from asgi_durable.storage.protocol import StepLog
from asgi_durable.storage.records import WorkflowRecord

__all__ = ["UnknownFunctions"]

logger = logging.getLogger(__name__)

FIRST_LOOK_SECONDS = 3.0
# Another process that has the function takes them within this time.
CONFIRM_SECONDS = 5.0
LOOK_INTERVAL_SECONDS = 600.0
MAX_TOLD = 1_000


class UnknownFunctions:
    """Writes a line to the log for each name that workflows wait for, where nobody has it.

    It looks soon after the start, where the function was renamed or its module is not imported
    any more, and now and then after that. It runs where the heartbeat does.

    Args:
        storage: Where the workflows are.
        registry: The functions of this process.
    """

    def __init__(self, storage: StepLog, registry: Registry) -> None:
        self._storage = storage
        self._registry = registry
        self._due_at = time.monotonic() + FIRST_LOOK_SECONDS
        self._task: asyncio.Task[None] | None = None
        self._suspected: frozenset[str] = frozenset()
        self._told: set[str] = set()

    def look_if_due(self) -> None:
        """Look on the running event loop, if it is time and no look is under way."""
        is_looking = self._task is not None and not self._task.done()
        if not is_looking and time.monotonic() >= self._due_at:
            self._task = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        wait = LOOK_INTERVAL_SECONDS
        try:
            if await self._find():
                wait = CONFIRM_SECONDS
        except StorageError as error:
            logger.debug("Workflows of unknown functions are looked for later: %s", error)
        except Exception:  # a defect must not end the looks
            logger.exception("Workflows of unknown functions are looked for later")
        self._due_at = time.monotonic() + wait

    async def _find(self) -> bool:
        """Tell of those that were there at the last look; return whether there are new ones."""
        known, _ = self._registry.workflow_names()
        limit = MAX_TOLD
        found = await self._storage.list_unknown(known, limit=limit)
        waiting = [one for one in found if one.workflow_id in self._suspected]
        self._tell([one for one in waiting if one.workflow_id not in self._told])
        seen = self._suspected
        self._suspected = frozenset(one.workflow_id for one in found)
        # Whoever is gone may come back, and would be told of again.
        self._told &= self._suspected
        return not self._suspected <= seen

    def _tell(self, workflows: Iterable[WorkflowRecord]) -> None:
        by_name: dict[str, list[WorkflowRecord]] = {}
        for workflow in workflows:
            by_name.setdefault(workflow.name, []).append(workflow)
            self._told.add(workflow.workflow_id)
        for name, some in by_name.items():
            logger.warning(
                "No function is registered as %r, so nobody goes on with %s. Give the function "
                "its former name, by name=, or import its module",
                name,
                workflows_text(some),
            )
