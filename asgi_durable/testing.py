"""For tests of durable code: a database in memory for each test.

As a plugin of pytest it has the fixture ``durable``::

    # conftest.py
    import pytest
    from orders import create_app

    pytest_plugins = ["asgi_durable.testing"]


    @pytest.fixture
    def app(durable):
        return create_app(durable)

An instance that a module makes gets its database by :func:`fresh_database`::

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
    """An instance on an empty database in memory; stopped after the test, if it was started.

    It starts with the application, on its first request, or with ``async with durable:``. What
    is still running at the end of the test is interrupted.
    """
    with fresh_database(Durable(IN_MEMORY, drain_timeout=0.0)) as durable:
        yield durable


@contextmanager
def fresh_database(durable: Durable) -> Iterator[Durable]:
    """Let an instance use an empty database in memory, whatever its URLs say.

    It is stopped before and after, if it was started: its next start is on that database, or
    on its own again.

    Args:
        durable: An application's instance, with the functions that it has decorated.
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
    # On a thread of its own: this one may have an event loop, running or not, of a test's.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, durable.engine.stop()).result()
