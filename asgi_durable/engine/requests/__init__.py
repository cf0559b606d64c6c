"""Workflows that are keyed requests."""
