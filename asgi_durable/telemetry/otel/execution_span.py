"""The current span of a workflow's code, which stands for the one that is open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry.trace import Span, SpanContext, Status, StatusCode
from opentelemetry.util.types import Attributes, AttributeValue

__all__ = ["ExecutionSpan"]


class ExecutionSpan(Span):
    """Stands for the span of an execution, and for the next one once that has ended.

    Tasks and threads have copies of the context in which they were begun. A new span could not
    get into those; this one is in all of them.

    Args:
        now: The span that it stands for.
    """

    def __init__(self, now: Span) -> None:
        self.now = now

    def __getattr__(self, name: str) -> Any:
        """Return what the SDK's spans have and the API's do not."""
        return getattr(self.now, name)

    def end(self, end_time: int | None = None) -> None:
        self.now.end(end_time)

    def get_span_context(self) -> SpanContext:
        return self.now.get_span_context()

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        self.now.set_attributes(attributes)

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        self.now.set_attribute(key, value)

    def add_event(
        self, name: str, attributes: Attributes = None, timestamp: int | None = None
    ) -> None:
        self.now.add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        self.now.add_link(context, attributes)

    def update_name(self, name: str) -> None:
        self.now.update_name(name)

    def is_recording(self) -> bool:
        return self.now.is_recording()

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        self.now.set_status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,  # noqa: FBT001, FBT002  as the API has it
    ) -> None:
        self.now.record_exception(exception, attributes, timestamp, escaped)
