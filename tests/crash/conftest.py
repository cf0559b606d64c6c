"""The marker of tests that nothing else may run beside."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", "measures_time: says how long something takes at most")
