"""Idempotency policies, and the way from a request to its policy."""
