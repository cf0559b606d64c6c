"""One call of a workflow, and its options."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from asgi_durable.context import current_request
from asgi_durable.engine.process.definitions import WorkflowDefinition
from asgi_durable.engine.runs.run import Run
from asgi_durable.errors import DurableUsageError
from asgi_durable.fast_dataclass import fast_dataclass
from asgi_durable.ids import CHILD_SEPARATOR
from asgi_durable.storage.records import WorkflowRecord
from asgi_durable.telemetry.baggage import (
    baggage_of,
    current_members,
    format_baggage,
    has_properties,
    parse_baggage,
    trace_of,
    with_baggage,
)
from asgi_durable.telemetry.observer import TelemetrySource

__all__ = ["Call", "WorkflowOptions", "kept_context"]

MAX_WORKFLOW_ID_CHARACTERS = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowOptions:
    """How a workflow is called.

    Attributes:
        workflow_id: Its id; ``None`` for a new one.
        on_conflict: Whether a call with an id raises, or attaches to the workflow that has the id,
            where that workflow was called with other arguments.

    Raises:
        DurableUsageError: The id is empty, too long, not printable or reserved.
    """

    workflow_id: str | None = None
    on_conflict: Literal["raise", "attach"] = "raise"

    def __post_init__(self) -> None:
        """Refuse ids that the id of a child could equal, or that break a log line."""
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


@fast_dataclass(kw_only=True)
class Call:
    """One call of a workflow.

    Attributes:
        definition: The workflow.
        args, kwargs: Its arguments.
        options: Its options.
        loop: The event loop that the call runs on.
        parent: The calling run, with the number of the call in its log.
        awaited: True for a call, False for a start in the background.
        runs: The runs that the call has launched, if the workflow takes injected parameters.
    """

    definition: WorkflowDefinition
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    options: WorkflowOptions
    loop: asyncio.AbstractEventLoop
    parent: tuple[Run, int] | None
    awaited: bool
    runs: list[Run] = field(default_factory=list, compare=False)


def kept_context(telemetry: TelemetrySource, caller: WorkflowRecord | None = None) -> str | None:
    """Return the trace context of the current code, as a workflow's row stores it.

    Args:
        telemetry: Gives the trace, and which members of the baggage are stored.
        caller: The workflow that the new one belongs to. It may continue without its request.
    """
    trace = telemetry.observer.trace_context()
    if trace is None and caller is not None:
        trace = trace_of(caller.trace_context)
    keys = telemetry.baggage_keys
    if not keys:
        return trace
    if caller is not None:
        inherited = baggage_of(caller.trace_context)
    else:
        request = current_request.get()
        inherited = request.baggage if request is not None else None
    # Members that the application has changed meanwhile count.
    members = parse_baggage(inherited, keys)
    changed = {
        key: value
        for key, value in current_members(keys).items()
        if key not in members or not has_properties(value, members[key])
    }
    return with_baggage(trace, format_baggage(members | changed))
