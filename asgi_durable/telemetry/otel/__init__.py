"""Spans and figures by OpenTelemetry; loaded only where the application uses it."""
