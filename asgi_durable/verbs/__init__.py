"""What application code calls on ``Durable``: decorators, calls, and their blocking forms."""
