"""Writes exceptions into the step log, and reads them back."""
