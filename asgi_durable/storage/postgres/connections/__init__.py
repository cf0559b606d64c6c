"""Connections to PostgreSQL: how they are opened, watched and reopened."""
