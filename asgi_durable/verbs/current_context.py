"""What the current code can ask: which workflow, step and request it belongs to."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any, cast

from asgi_durable.context import RequestContext, current_request
from asgi_durable.engine.engine import Engine
from asgi_durable.engine.runs.frame import current_session
from asgi_durable.errors import DurableUsageError
from asgi_durable.ids import step_key
from asgi_durable.telemetry.baggage import baggage_of, parse_baggage, trace_of
from asgi_durable.telemetry.observer import current_request_span
from asgi_durable.verbs.outgoing import DONE, OutgoingRequest, add_key, add_trace

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

__all__ = ["CurrentContext"]


class CurrentContext:
    """Where the current code runs; ``None`` outside of what is asked for, but for a session.

    Attributes:
        engine: What runs it.
    """

    engine: Engine

    @property
    def workflow_id(self) -> str | None:
        """The current workflow's id, or the current keyed request's; ``None`` outside."""
        frame = self.engine.frame()
        return frame.run.workflow_id if frame is not None and frame.run is not None else None

    @property
    def step_id(self) -> int | None:
        """The current step's place in the log, from 0; ``None`` outside a step."""
        frame = self.engine.frame()
        return frame.step_number if frame is not None else None

    def idempotency_key_for_step(self) -> str:
        """Return a key for the current step, to hand on to a service as its idempotency key.

        It is the same however often the step is tried, in any process, and no other step's.

        Returns:
            26 letters and digits; nobody can tell the workflow's id from it.

        Raises:
            DurableUsageError: The current code is in no step of a workflow or keyed request.
        """
        frame = self.engine.frame()
        if frame is None or frame.run is None or frame.step_number is None:
            msg = "idempotency_key_for_step() is for code in a step, where a place is recorded"
            raise DurableUsageError(msg)
        return step_key(frame.run.workflow_id, frame.step_number)

    def add_idempotency_key(self, request: OutgoingRequest) -> Awaitable[None]:
        """Give a request to another service the key of the step that sends it; a hook of httpx.

        ``httpx.AsyncClient(event_hooks={"request": [durable.add_idempotency_key]})``, and the
        same for ``httpx.Client``. A ``POST`` or ``PATCH`` in a step of a workflow or keyed
        request gets an ``Idempotency-Key``: the first of an attempt that of
        :meth:`idempotency_key_for_step`, the others that with their number, so each has the
        same one however often the step is tried. All else is left alone, and so is a key that
        is there.

        Returns:
            Something that may be awaited, and need not be.
        """
        add_key(request, self.engine.frame())
        return DONE

    def add_trace_headers(self, request: OutgoingRequest) -> Awaitable[None]:
        """Let a request to another service belong to the current trace; a hook of httpx.

        It is for clients that no instrumentation does this for. With OpenTelemetry the
        propagators of the application say what is sent; else it is the ``traceparent`` and
        ``tracestate`` that the current workflow or request has, and the ``baggage`` of
        :attr:`baggage`. Headers that are there are left alone.

        Returns:
            Something that may be awaited, and need not be.
        """
        add_trace(request, *self._kept())
        return DONE

    @property
    def baggage(self) -> Mapping[str, str]:
        """The W3C baggage that the current work keeps, after a restart as well.

        Those members that ``Telemetry(baggage_keys=...)`` names, decoded. Empty outside.
        """
        return parse_baggage(self._kept()[1])

    def _kept(self) -> tuple[str | None, str | None]:
        """Return the trace and the baggage of the current work, as headers have them."""
        frame = self.engine.frame()
        if frame is not None and frame.run is not None:
            kept = frame.run.workflow.trace_context
            return trace_of(kept), baggage_of(kept)
        request = current_request.get()
        return (request.trace_context, request.baggage) if request is not None else (None, None)

    @property
    def request_id(self) -> str | None:
        """The id of the request that began the current work, after a restart as well."""
        frame = self.engine.frame()
        if frame is not None and frame.run is not None:
            return frame.run.workflow.request_id
        request = current_request.get()
        return request.request_id if request is not None else None

    @property
    def request(self) -> RequestContext | None:
        """The request being handled; ``None`` outside, and in what a restart resumed."""
        return current_request.get()

    @property
    def span(self) -> Any:
        """The OpenTelemetry span of the current run, else of the request; ``None`` without."""
        frame = self.engine.frame()
        span = frame.run.observed.span if frame is not None and frame.run is not None else None
        return span or current_request_span.get()

    @property
    def session(self) -> AsyncSession:
        """The current transaction's session.

        In a ``def`` function it is a ``Session``: ``durable.blocking.session`` has that type.

        Raises:
            DurableUsageError: The current code is in no transaction.
        """
        return cast("AsyncSession", current_session(self.engine.frame()))
