"""Log lines that say in which request, workflow and step they were written."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

from asgi_durable.context import current_request
from asgi_durable.engine.runs.frame import Frame, current_frame
from asgi_durable.ids import principal_hash

__all__ = ["DurableLogFilter", "DurableLogProcessor"]


class DurableLogFilter(logging.Filter):
    """Gives log records the fields that name their place.

    They are ``request_id``, ``workflow_id``, ``run`` (which execution it is, 1 for the first),
    ``step``, ``principal_hash`` (of whose keyed request it is, in the workflows below it too:
    the first characters of its ``Durable-Id``), ``trace_id`` and ``span_id``.

    All are always there, ``None`` where there is nothing to name, so that a format can use
    them. A record that has one of them already, from ``extra=`` say, keeps it. The filter
    belongs on a handler: a logger's sees nothing of the loggers below it.

    Args:
        drop_replayed: True to drop what the code of a workflow, or of a request, logs between
            its steps while it is replayed: it did so before.
    """

    def __init__(self, *, drop_replayed: bool = False) -> None:
        super().__init__()
        self.drop_replayed = drop_replayed

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; return False for a record to be dropped."""
        frame = _frame()
        if self.drop_replayed and _is_replayed(frame):
            return False
        for name, value in _fields_of(frame).items():
            if getattr(record, name, None) is None:
                setattr(record, name, value)
        return True


class DurableLogProcessor:
    """A structlog processor that adds the same fields, those that there are.

    Args:
        drop_replayed: As of :class:`DurableLogFilter`.
    """

    def __init__(self, *, drop_replayed: bool = False) -> None:
        self.drop_replayed = drop_replayed

    def __call__(
        self, _logger: Any, _method_name: str, event_dict: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """Add the fields.

        Raises:
            DropEvent: The event is to be dropped.
        """
        frame = _frame()
        if self.drop_replayed and _is_replayed(frame):
            # Who calls a processor has loaded it.
            raise sys.modules["structlog"].DropEvent
        for name, value in _fields_of(frame).items():
            if value is not None:
                event_dict.setdefault(name, value)
        return event_dict


def _frame() -> Frame | None:
    frame = current_frame.get()
    is_over = frame is not None and frame.run is not None and frame.run.closed
    return None if is_over else frame


def _is_replayed(frame: Frame | None) -> bool:
    return (
        frame is not None
        and frame.run is not None
        and frame.step_name is None
        and frame.run.is_replaying
    )


def _fields_of(frame: Frame | None) -> dict[str, str | int | None]:
    run = frame.run if frame is not None else None
    request = current_request.get()
    request_id = request.request_id if request is not None else None
    trace_id, span_id = _span_ids()
    return {
        "request_id": run.workflow.request_id if run is not None else request_id,
        "workflow_id": run.workflow_id if run is not None else None,
        "run": run.workflow.attempts if run is not None else None,
        "step": frame.step_name if frame is not None else None,
        "principal_hash": principal_hash(run.workflow_id) if run is not None else None,
        "trace_id": trace_id,
        "span_id": span_id,
    }


def _span_ids() -> tuple[str | None, str | None]:
    # Without the API there is no current span.
    trace = sys.modules.get("opentelemetry.trace")
    context = trace.get_current_span().get_span_context() if trace is not None else None
    if context is None or not context.is_valid:
        return None, None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"
