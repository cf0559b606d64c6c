"""Decides whether two requests with one key are the same request."""
