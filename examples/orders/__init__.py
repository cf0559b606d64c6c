"""An order service whose requests survive a crash."""
