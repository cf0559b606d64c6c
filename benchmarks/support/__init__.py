"""Shared by all benchmarks: workers, databases, tables."""
