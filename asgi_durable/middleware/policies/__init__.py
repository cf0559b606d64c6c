"""Idempotency policies, and which request has which."""
