"""Transactions of the application on PostgreSQL."""
