"""Spans in memory, and the trees that they form."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler

from asgi_durable import Telemetry

Tree = tuple[str, list[Any]]


class Spans:
    """A tracer provider whose spans stay in memory.

    Args:
        sampler: The provider's sampler; all spans are sampled by default.
        options: More arguments of ``Telemetry``.

    Attributes:
        telemetry: For a ``Durable`` that uses the provider.
    """

    def __init__(self, sampler: Sampler | None = None, **options: Any) -> None:
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self._exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.telemetry = Telemetry(tracer_provider=self.provider, **options)

    @property
    def ended(self) -> list[ReadableSpan]:
        """All that have ended, in the order of their starts."""
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def take(self, name: str) -> ReadableSpan:
        """Return the only span with a name."""
        (span,) = [span for span in self.ended if span.name == name]
        return span

    def trees(self) -> list[Tree]:
        """Return the names of all spans: each with its children, in the order of their starts.

        A span whose parent is elsewhere is a root as well.
        """
        return trees_of(
            [(s.name, span_id(s), s.parent.span_id if s.parent else 0) for s in self.ended]
        )

    def clear(self) -> None:
        """Forget them."""
        self._exporter.clear()


def span_id(span: ReadableSpan) -> int:
    """Return a span's id."""
    return span.get_span_context().span_id


def links_of(span: ReadableSpan) -> list[int]:
    """Return the ids of the spans that a span is linked to."""
    return [link.context.span_id for link in span.links]


def links_by_kind(span: ReadableSpan) -> dict[str, int]:
    """Return the ids of the spans that a span is linked to, by what they are to it."""
    found = {(link.attributes or {})["durable.link"]: link.context.span_id for link in span.links}
    assert len(found) == len(span.links)
    return {str(kind): linked for kind, linked in found.items()}


def trees_of(spans: list[tuple[str, int, int]]) -> list[Tree]:
    """Return the trees of spans given by name, id and the parent's id."""
    known = {own_id for _, own_id, _ in spans}

    def below(parent: int) -> list[Tree]:
        return [(name, below(own)) for name, own, above in spans if above == parent]

    return [(name, below(own)) for name, own, above in spans if above not in known]
