"""Spans, metrics and exports for tests to read."""
