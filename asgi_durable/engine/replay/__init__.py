"""Replay: the step log of a run, and the results that it returns again."""
