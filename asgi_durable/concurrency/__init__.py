"""Threads, event loops and what is awaited across them; knows nothing of workflows."""
