"""Inspects the application that the middlewares are put around."""
