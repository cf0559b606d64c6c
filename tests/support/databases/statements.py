"""The statements on the step log's own connection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from asgi_durable import Durable


@contextmanager
def written_statements(durable: Durable) -> Iterator[list[str]]:
    """Collect the statements of the writer's connection, BEGIN and COMMIT included."""
    running = durable.engine._running
    assert running is not None
    connection = running.services.storage._opened.writer.connection  # type: ignore[attr-defined]
    statements: list[str] = []
    connection.set_trace_callback(statements.append)
    try:
        yield statements
    finally:
        connection.set_trace_callback(None)
