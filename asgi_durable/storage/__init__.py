"""Storage: the port, its records and writes, and the adapters behind it."""
