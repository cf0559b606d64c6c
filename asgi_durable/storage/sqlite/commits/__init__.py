"""Group commit into SQLite."""
