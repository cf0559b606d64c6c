"""The calls that a run records: steps, transactions and sleeps."""
