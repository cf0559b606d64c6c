"""Workflows that no process runs, because none has a function of their name."""

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
# A process that has the function takes the workflows within this time.
CONFIRM_SECONDS = 5.0
LOOK_INTERVAL_SECONDS = 600.0
MAX_WORKFLOWS = 1_000


class UnknownFunctions:
    """Logs each function name that workflows wait for and that no process has.

    The usual reason is that the function was renamed, or that its module is not imported any
    more. So the first look comes soon after the start, and others follow every ten minutes. They
    run on the heartbeat's event loop.

    Args:
        storage: Holds the workflows.
        registry: The functions of this process.
    """

    def __init__(self, storage: StepLog, registry: Registry) -> None:
        self._storage = storage
        self._registry = registry
        self._due_at = time.monotonic() + FIRST_LOOK_SECONDS
        self._task: asyncio.Task[None] | None = None
        self._suspected: frozenset[str] = frozenset()
        self._logged: set[str] = set()

    def look_if_due(self) -> None:
        """Look on the running event loop, if it is time and no other look is under way."""
        is_looking = self._task is not None and not self._task.done()
        if not is_looking and time.monotonic() >= self._due_at:
            self._task = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        wait = LOOK_INTERVAL_SECONDS
        try:
            if await self._find():
                wait = CONFIRM_SECONDS
        except StorageError as error:
            logger.debug("Workflows of unknown functions are searched for later: %s", error)
        except Exception:  # a defect must not end the looks
            logger.exception("Workflows of unknown functions are searched for later")
        self._due_at = time.monotonic() + wait

    async def _find(self) -> bool:
        """Log the workflows that were there at the last look; return True if there are new ones."""
        known, _ = self._registry.workflow_names()
        found = await self._storage.list_unknown(known, limit=MAX_WORKFLOWS)
        waiting = [one for one in found if one.workflow_id in self._suspected]
        self._log([one for one in waiting if one.workflow_id not in self._logged])
        seen = self._suspected
        self._suspected = frozenset(one.workflow_id for one in found)
        # A workflow that is found again after it had disappeared is logged again.
        self._logged &= self._suspected
        return not self._suspected <= seen

    def _log(self, workflows: Iterable[WorkflowRecord]) -> None:
        by_name: dict[str, list[WorkflowRecord]] = {}
        for workflow in workflows:
            by_name.setdefault(workflow.name, []).append(workflow)
            self._logged.add(workflow.workflow_id)
        for name, some in by_name.items():
            logger.warning(
                "No function is registered as %r, so no process continues %s. Give the function "
                "its former name, by name=, or import its module",
                name,
                workflows_text(some),
            )
