"""The idempotency middleware: from a request's key to its response."""
