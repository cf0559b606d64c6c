"""Size limits, compression and encryption of recorded bytes."""
