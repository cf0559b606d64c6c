"""The workflow, step and request that the current code belongs to."""

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
    """The workflow, step and request that the current code belongs to.

    Outside of them the properties are ``None``; ``session`` raises an error instead.

    Attributes:
        engine: Runs the current code.
    """

    engine: Engine

    @property
    def workflow_id(self) -> str | None:
        """The current workflow's id, or the current keyed request's; ``None`` outside."""
        frame = self.engine.frame()
        return frame.run.workflow_id if frame is not None and frame.run is not None else None

    @property
    def step_id(self) -> int | None:
        """The current step's place in the step log, from 0; ``None`` outside a step."""
        frame = self.engine.frame()
        return frame.step_number if frame is not None else None

    def idempotency_key_for_step(self) -> str:
        """Return a key for the current step, to send to a service as its idempotency key.

        It is the same in every attempt of the step, in any process, and different from the keys
        of all other steps.

        Example::

            key = durable.idempotency_key_for_step()
            await client.post(url, json=order, headers={"Idempotency-Key": key})

        Returns:
            26 letters and digits, which do not reveal the workflow's id.

        Raises:
            DurableUsageError: The current code is not in a step of a workflow or keyed request.
        """
        frame = self.engine.frame()
        if frame is None or frame.run is None or frame.step_number is None:
            msg = (
                "idempotency_key_for_step() is for code in a step of a workflow or a keyed request"
            )
            raise DurableUsageError(msg)
        return step_key(frame.run.workflow_id, frame.step_number)

    def add_idempotency_key(self, request: OutgoingRequest) -> Awaitable[None]:
        """Add the current step's key to a request to another service; an event hook of httpx.

        A ``POST`` or ``PATCH`` that a step of a workflow or keyed request sends gets an
        ``Idempotency-Key``. The first request of an attempt gets the key of
        :meth:`idempotency_key_for_step`, and each further one that key with its number. So a
        request has the same key in every attempt of the step. Other requests stay as they are, and
        so does a key that is there already.

        Example::

            httpx.AsyncClient(event_hooks={"request": [durable.add_idempotency_key]})
            httpx.Client(event_hooks={"request": [durable.add_idempotency_key]})

        Returns:
            An object that may be awaited, and need not be.
        """
        add_key(request, self.engine.frame())
        return DONE

    def add_trace_headers(self, request: OutgoingRequest) -> Awaitable[None]:
        """Add the current trace to a request to another service; an event hook of httpx.

        It is for clients without an instrumentation of their own. With OpenTelemetry, the
        application's propagators write the headers; otherwise they are the ``traceparent`` and
        ``tracestate`` of the current workflow or request, and the ``baggage`` of
        :attr:`baggage`. Headers that are there already stay.

        Returns:
            An object that may be awaited, and need not be.
        """
        add_trace(request, *self._trace_and_baggage())
        return DONE

    @property
    def baggage(self) -> Mapping[str, str]:
        """The W3C baggage that the current workflow or request stores, also after a restart.

        It has the members that ``Telemetry(baggage_keys=...)`` names, decoded. Empty outside.
        """
        return parse_baggage(self._trace_and_baggage()[1])

    def _trace_and_baggage(self) -> tuple[str | None, str | None]:
        """Return the trace and the baggage of the current code, as in their headers."""
        frame = self.engine.frame()
        if frame is not None and frame.run is not None:
            stored = frame.run.workflow.trace_context
            return trace_of(stored), baggage_of(stored)
        request = current_request.get()
        return (request.trace_context, request.baggage) if request is not None else (None, None)

    @property
    def request_id(self) -> str | None:
        """The id of the request that led to the current code, also after a restart."""
        frame = self.engine.frame()
        if frame is not None and frame.run is not None:
            return frame.run.workflow.request_id
        request = current_request.get()
        return request.request_id if request is not None else None

    @property
    def request(self) -> RequestContext | None:
        """The request that the current code handles; ``None`` outside and in a resumed workflow."""
        return current_request.get()

    @property
    def span(self) -> Any:
        """The OpenTelemetry span of the current run or request; ``None`` if there is none."""
        frame = self.engine.frame()
        span = frame.run.observed.span if frame is not None and frame.run is not None else None
        return span or current_request_span.get()

    @property
    def session(self) -> AsyncSession:
        """The session of the current transaction, typed for ``async def`` functions.

        In a ``def`` function it is a ``Session``: use ``durable.blocking.session`` there, which
        has that type.

        Raises:
            DurableUsageError: The current code is not in a transaction.
        """
        return cast("AsyncSession", current_session(self.engine.frame()))
