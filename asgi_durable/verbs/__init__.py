"""The methods that application code calls on ``Durable``: decorators and verbs."""
