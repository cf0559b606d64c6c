"""Transactions of the application in a SQLite file."""
