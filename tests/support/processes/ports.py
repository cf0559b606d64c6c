"""Ports that nobody else takes while the server on one of them is down."""

from __future__ import annotations

import os

__all__ = ["own_share"]

MOST_WORKERS = 16


def own_share(ports: range) -> range:
    """Return the ports that are for this process of the test run, and for no other one."""
    # pytest-xdist counts its workers: gw0, gw1, …
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return ports[number % MOST_WORKERS :: MOST_WORKERS]
