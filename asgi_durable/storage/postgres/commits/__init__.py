"""Group commit into PostgreSQL."""
