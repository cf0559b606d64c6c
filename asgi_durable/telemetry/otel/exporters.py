"""The library's own OTLP exporters; they need the SDK, the extra ``otel``."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import Callable, Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import TracerProvider as AnyTracerProvider

from asgi_durable.errors import DurableUsageError
from asgi_durable.telemetry.otel.log_handler import OtelLogHandler

__all__ = ["Exporters"]

logger = logging.getLogger(__name__)

# How long a stop waits for endpoints that do not respond.
CLOSE_SECONDS = 5.0


class Exporters:
    """The exporters of one life of an application, from its start to its stop."""

    def __init__(self) -> None:
        # In the order in which they are closed.
        self._closing: list[Callable[[], object]] = []

    def export_traces(
        self, provider: AnyTracerProvider | None, endpoints: Sequence[str]
    ) -> AnyTracerProvider:
        """Export a provider's spans; return it, or a new provider if there is none.

        Raises:
            DurableUsageError: It is not a provider of the SDK, and accepts no processors.
        """
        if provider is None:
            own = TracerProvider(shutdown_on_exit=False)
            for endpoint in endpoints:
                own.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
            self._closing.append(own.shutdown)
            return own
        if not isinstance(provider, TracerProvider):
            msg = (
                f"otlp_traces_endpoints: spans of a {type(provider).__name__} cannot be exported; "
                "its own exporters have to do it"
            )
            raise DurableUsageError(msg)
        for endpoint in endpoints:
            processor = _Removable(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
            provider.add_span_processor(processor)
            self._closing.append(processor.remove)
        return provider

    def export_logs(
        self, endpoints: Sequence[str], names: Sequence[str], log_filter: logging.Filter | None
    ) -> None:
        """Export the records of some loggers and of those below them."""
        provider = LoggerProvider(shutdown_on_exit=False)
        for endpoint in endpoints:
            provider.add_log_record_processor(
                BatchLogRecordProcessor(OTLPLogExporter(endpoint=endpoint))
            )
        handler = OtelLogHandler(provider)
        if log_filter is not None:
            handler.addFilter(log_filter)
        for name in names:
            exported = logging.getLogger(name)
            exported.addHandler(handler)
            self._closing.append(functools.partial(exported.removeHandler, handler))
        self._closing.append(provider.shutdown)

    async def close(self) -> None:
        """Export the rest and stop; endpoints that do not respond are not waited for long."""
        loop, closed = asyncio.get_running_loop(), asyncio.Event()

        def close_all() -> None:
            for close in self._closing:
                try:
                    close()
                except Exception:  # the others must be closed all the same
                    logger.exception("Telemetry cannot be closed")
            try:
                loop.call_soon_threadsafe(closed.set)
            except RuntimeError:
                logger.debug("The event loop has ended meanwhile")

        # A daemon thread: neither the end of the event loop nor that of the process waits for it.
        threading.Thread(target=close_all, name="asgi-durable-telemetry", daemon=True).start()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await closed.wait()
        except TimeoutError:
            logger.warning("An OTLP endpoint does not respond; spans or log records are lost")


class _Removable(SpanProcessor):
    """A processor that can be switched off, as a provider cannot remove its processors."""

    def __init__(self, processor: SpanProcessor) -> None:
        self._processor: SpanProcessor | None = processor

    def remove(self) -> None:
        processor, self._processor = self._processor, None
        if processor is not None:
            processor.shutdown()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if (processor := self._processor) is not None:
            processor.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        if (processor := self._processor) is not None:
            processor.on_end(span)

    def shutdown(self) -> None:
        self.remove()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        processor = self._processor
        return processor is None or processor.force_flush(timeout_millis)
