"""Finds a request's idempotency key and its principal."""
