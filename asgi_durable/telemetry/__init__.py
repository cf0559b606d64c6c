"""Spans, metrics and trace context; OpenTelemetry itself is in ``otel``."""
