"""Log records on their way to OpenTelemetry."""

from __future__ import annotations

import logging
import time
from typing import Any

from opentelemetry._logs import LoggerProvider, SeverityNumber

__all__ = ["OtelLogHandler"]

_EXCEPTION_FORMAT = logging.Formatter()
# Attributes that every record has, and those that this module translates.
_KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "trace_id",
    "span_id",
}
_SEVERITIES = (
    (logging.CRITICAL, SeverityNumber.FATAL),
    (logging.ERROR, SeverityNumber.ERROR),
    (logging.WARNING, SeverityNumber.WARN),
    (logging.INFO, SeverityNumber.INFO),
    (logging.DEBUG, SeverityNumber.DEBUG),
)


class OtelLogHandler(logging.Handler):
    """Emits records, with the span in which they are written and with their extra fields."""

    def __init__(self, provider: LoggerProvider) -> None:
        super().__init__()
        self._provider = provider

    def emit(self, record: logging.LogRecord) -> None:
        # Records of the exporters themselves would be exported in an endless loop.
        if record.name.startswith("opentelemetry"):
            return
        try:
            self._provider.get_logger(record.name).emit(
                timestamp=int(record.created * 1e9),
                observed_timestamp=time.time_ns(),
                severity_number=_severity(record.levelno),
                severity_text=record.levelname,
                body=record.getMessage(),
                attributes=_attributes(record),
            )
        except Exception:
            self.handleError(record)


def _severity(level: int) -> SeverityNumber:
    for at_least, severity in _SEVERITIES:
        if level >= at_least:
            return severity
    return SeverityNumber.TRACE


def _attributes(record: logging.LogRecord) -> dict[str, Any]:
    attributes = {
        name: value if isinstance(value, (str, bool, int, float)) else str(value)
        for name, value in vars(record).items()
        if name not in _KNOWN and value is not None
    }
    attributes["code.function.name"] = record.funcName
    attributes["code.file.path"] = record.pathname
    attributes["code.line.number"] = record.lineno
    if record.exc_info and record.exc_info[0] is not None:
        attributes["exception.type"] = record.exc_info[0].__name__
        attributes["exception.message"] = str(record.exc_info[1])
        attributes["exception.stacktrace"] = _EXCEPTION_FORMAT.formatException(record.exc_info)
    return attributes
