"""Reads request bodies, in memory or spooled to disk."""
