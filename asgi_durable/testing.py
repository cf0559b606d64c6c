"""Help for tests of durable code: an in-memory database for each test.

As a pytest plugin it provides the fixture ``durable``::

    # conftest.py
    import pytest
    from orders import create_app

    pytest_plugins = ["asgi_durable.testing"]


    @pytest.fixture
    def app(durable):
        return create_app(durable)

For an instance that a module creates, use :func:`fresh_database`::

    @pytest.fixture(autouse=True)
    def database():
        with fresh_database(orders.durable):
            yield
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from asgi_durable.durable import Durable

__all__ = ["durable", "fresh_database"]

IN_MEMORY = "sqlite://"


@pytest.fixture
def durable() -> Iterator[Durable]:
    """An instance on an empty in-memory database; stopped after the test, if it was started.

    It starts with the application, at the first request, or with ``async with durable:``.
    Workflows that still run at the end of the test are interrupted.
    """
    with fresh_database(Durable(IN_MEMORY, drain_timeout=0.0)) as durable:
        yield durable


@contextmanager
def fresh_database(durable: Durable) -> Iterator[Durable]:
    """Let an instance use an empty in-memory database, whatever its URLs say.

    The instance is stopped before and after, if it was started. So its next start inside the
    block uses the empty database, and its next start after the block its own database again.

    Args:
        durable: An application's instance, with the functions that it has decorated.

    Yields:
        The same instance.
    """
    _stop(durable)
    urls = durable.url, durable.application_url
    durable.url, durable.application_url = IN_MEMORY, None
    try:
        yield durable
    finally:
        _stop(durable)
        durable.url, durable.application_url = urls


def _stop(durable: Durable) -> None:
    # In another thread, because this one may have an event loop of the test, running or not.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, durable.engine.stop()).result()
