"""Starts workflows, waits for their results and cancels them."""
