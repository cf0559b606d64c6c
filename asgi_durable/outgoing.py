"""Requests that a step sends to others, and their idempotency keys."""

from __future__ import annotations

from collections.abc import Generator, MutableMapping
from typing import Protocol

from asgi_durable.engine.frame import Frame
from asgi_durable.ids import step_key

__all__ = ["DONE", "OutgoingRequest", "add_key"]

HEADER = "Idempotency-Key"
# Those that do something twice if they are sent twice.
METHODS = frozenset({"POST", "PATCH"})


class OutgoingRequest(Protocol):
    """A client's request that is about to be sent, as of httpx."""

    @property
    def method(self) -> str:
        """In upper case."""

    @property
    def headers(self) -> MutableMapping[str, str]:
        """Found by name, whatever its case."""


class _Done:
    """Nothing to wait for; unlike a coroutine it need not be awaited."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


DONE = _Done()


def add_key(request: OutgoingRequest, frame: Frame | None) -> None:
    """Give a request of a step that has a place in a log the step's next key."""
    if frame is None or frame.run is None or frame.step_number is None:
        return
    if request.method not in METHODS or HEADER in request.headers:
        return
    key = step_key(frame.run.workflow_id, frame.step_number)
    earlier = next(frame.outgoing)
    request.headers[HEADER] = f"{key}-{earlier + 1}" if earlier else key
