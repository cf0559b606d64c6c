"""One call of a workflow, and its options."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from asgi_durable.engine.definitions import WorkflowDefinition
from asgi_durable.engine.run import Run
from asgi_durable.errors import DurableUsageError
from asgi_durable.ids import CHILD_SEPARATOR
from asgi_durable.value_class import value_class

__all__ = ["Call", "WorkflowOptions"]

MAX_WORKFLOW_ID_CHARACTERS = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowOptions:
    """How a workflow is called.

    Attributes:
        workflow_id: Its id; one of its own with ``None``.
        on_conflict: What a call with an id does where the workflow that has it was given other
            arguments: it raises, or attaches to that workflow.

    Raises:
        DurableUsageError: The id is empty, too long, not printable or reserved.
    """

    workflow_id: str | None = None
    on_conflict: Literal["raise", "attach"] = "raise"

    def __post_init__(self) -> None:
        """Refuse ids that could be a child's, or that break a log line."""
        if self.on_conflict not in ("raise", "attach"):
            msg = f"on_conflict is 'raise' or 'attach', got {self.on_conflict!r}"
            raise DurableUsageError(msg)
        workflow_id = self.workflow_id
        if workflow_id is None:
            return
        if (
            not 1 <= len(workflow_id) <= MAX_WORKFLOW_ID_CHARACTERS
            or not workflow_id.isprintable()
            or CHILD_SEPARATOR in workflow_id
        ):
            msg = (
                "a workflow id is 1 to 255 printable characters without "
                f"{CHILD_SEPARATOR!r}, got {workflow_id!r}"
            )
            raise DurableUsageError(msg)


@value_class(kw_only=True)
class Call:
    """One call of a workflow: what, with which arguments, and from where.

    Attributes:
        loop: The event loop that the call runs on.
        parent: The run that calls, with the place of the call in its log.
        awaited: True for a call, False for a start in the background.
        runs: Those that it has launched, of a workflow that takes injected parameters.
    """

    definition: WorkflowDefinition
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    options: WorkflowOptions
    loop: asyncio.AbstractEventLoop
    parent: tuple[Run, int] | None
    awaited: bool
    runs: list[Run] = field(default_factory=list, compare=False)
