"""Log records with the request, workflow and step that they were written in."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

from asgi_durable.context import current_request
from asgi_durable.engine.runs.frame import Frame, current_frame
from asgi_durable.ids import principal_hash
from asgi_durable.telemetry.current_span import current_span_ids

__all__ = ["DurableLogFilter", "DurableLogProcessor"]


class DurableLogFilter(logging.Filter):
    """A logging filter that adds the request, workflow and step to each log record.

    The fields are ``request_id``, ``workflow_id``, ``run`` (the number of the execution, 1 for
    the first), ``step``, ``principal_hash`` (identifies the sender of the keyed request, also in
    the workflows that the request calls: the first 16 characters of its ``Durable-Id``),
    ``trace_id`` and ``span_id``.

    A record always has all of them, so that a format can use them; a field without a value is
    ``None``. A value that the record has already, for example from ``extra=``, stays. Add the
    filter to a handler: a logger's filter does not see the records of the loggers below it.

    Example::

        handler.addFilter(DurableLogFilter())
        handler.setFormatter(logging.Formatter("%(workflow_id)s %(step)s %(message)s"))

    Args:
        drop_replayed: True to drop the records that a workflow's code, or a request's, writes
            between its steps during a replay: an earlier execution has written them already.
    """

    def __init__(self, *, drop_replayed: bool = False) -> None:
        super().__init__()
        self.drop_replayed = drop_replayed

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; return False to drop the record."""
        frame = _frame()
        if self.drop_replayed and _is_replayed(frame):
            return False
        for name, value in _fields_of(frame).items():
            if getattr(record, name, None) is None:
                setattr(record, name, value)
        return True


class DurableLogProcessor:
    """A structlog processor that adds the fields of :class:`DurableLogFilter` that have a value.

    Args:
        drop_replayed: True to drop events during a replay; see :class:`DurableLogFilter`.
    """

    def __init__(self, *, drop_replayed: bool = False) -> None:
        self.drop_replayed = drop_replayed

    def __call__(
        self, _logger: Any, _method_name: str, event_dict: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """Add the fields.

        Raises:
            DropEvent: structlog drops the event.
        """
        frame = _frame()
        if self.drop_replayed and _is_replayed(frame):
            # structlog calls the processor, so it is loaded.
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
        and frame.run.log.is_replaying
    )


def _fields_of(frame: Frame | None) -> dict[str, str | int | None]:
    run = frame.run if frame is not None else None
    request = current_request.get()
    request_id = request.request_id if request is not None else None
    trace_id, span_id = current_span_ids() or (None, None)
    return {
        "request_id": run.workflow.request_id if run is not None else request_id,
        "workflow_id": run.workflow_id if run is not None else None,
        "run": run.workflow.attempts if run is not None else None,
        "step": frame.step_name if frame is not None else None,
        "principal_hash": principal_hash(run.workflow_id) if run is not None else None,
        "trace_id": trace_id,
        "span_id": span_id,
    }
