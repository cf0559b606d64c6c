"""Transactions of the application on SQLite."""
