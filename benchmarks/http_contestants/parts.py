"""The parameters of the HTTP benchmark's apps, and the parts that they are made of."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

__all__ = ["URL_VARIABLE", "ASGIApp", "database_url", "new_app"]

ASGIApp = Callable[..., Awaitable[None]]
URL_VARIABLE = "BENCHMARK_URL"


def database_url() -> str:
    """Return the URL of the app's database."""
    return os.environ[URL_VARIABLE]


def new_app(factory: str) -> Any:
    """Make an app, as a server does."""
    module, _, name = factory.partition(":")
    return getattr(import_module(module), name)()
