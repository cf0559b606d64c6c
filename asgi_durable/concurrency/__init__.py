"""Threads, event loops and waiting across them; knows nothing of workflows."""
