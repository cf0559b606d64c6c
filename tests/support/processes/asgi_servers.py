"""The ASGI servers that people use, each in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import pytest

from support.paths import TESTS
from support.processes.server import Server

ADDRESS = "127.0.0.1"


def uvicorn(app: str, port: int) -> list[str]:
    """Return the command of a uvicorn."""
    return ["uvicorn", app, "--host", ADDRESS, "--port", str(port), "--no-access-log"]


def hypercorn(app: str, port: int) -> list[str]:
    """Return the command of a hypercorn; it serves in the process that is started."""
    return [*_hypercorn(app, port), "--workers", "0"]


def granian(app: str, port: int) -> list[str]:
    """Return the command of a granian; it serves in a child of the process that is started."""
    options = ["--interface", "asgi", "--host", ADDRESS, "--port", str(port), "--workers", "1"]
    return ["granian", *options, app]


def daphne(app: str, port: int) -> list[str]:
    """Return the command of a daphne, which knows no lifespan."""
    return ["daphne", "--bind", ADDRESS, "--port", str(port), "--no-server-name", app]


def hypercorn_on_trio(app: str, port: int) -> list[str]:
    """Return the command of a hypercorn whose event loop is trio's.

    It serves in a child: on trio the process that is started would not end in good order.
    """
    return [*_hypercorn(app, port), "--worker-class", "trio"]


def _hypercorn(app: str, port: int) -> list[str]:
    return ["hypercorn", app, "--bind", f"{ADDRESS}:{port}"]


Command = Callable[[str, int], list[str]]

# Those with event loops of asyncio, and a lifespan.
ASGI_SERVERS: dict[str, Command] = {
    command.__name__: command for command in (uvicorn, hypercorn, granian)
}
ALL_SERVERS: dict[str, Command] = {
    **ASGI_SERVERS,
    **{command.__name__: command for command in (daphne, hypercorn_on_trio)},
}
# Packages that only the tests of some servers need.
NEEDED = {"daphne": "daphne", "hypercorn_on_trio": "trio"}


class ASGIServer(Server):
    """Serves an app by one of the servers; the app may import the tests' ``support``.

    As a context manager it stops the server at the end.

    Args:
        name: One of ``ALL_SERVERS``.
        folder: Working directory: databases and logs go there.
        app: As all servers take it.
        app_dir: Where the app is imported from.
        environment: More environment variables.
    """

    _has_own_group = True

    def __init__(
        self,
        name: str,
        folder: Path,
        app: str,
        *,
        app_dir: Path,
        environment: dict[str, str] | None = None,
    ) -> None:
        found = importing_from(app_dir, TESTS)
        super().__init__(folder, app, environment=found | (environment or {}))
        self._command = [sys.executable, "-m", *ALL_SERVERS[name](app, self.port)]

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it, and end what is left of it."""
        if self.is_running:
            try:
                self.terminate()
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
        super().__exit__(exc_type, exc_value, traceback)


def importing_from(*folders: Path) -> dict[str, str]:
    """Return the environment of a process that imports from more folders."""
    paths = [*map(str, folders), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def skip_without(name: str) -> None:
    """Skip the test if a server, or the event loop that it needs, is not installed."""
    if (needed := NEEDED.get(name)) is not None:
        pytest.importorskip(needed, reason=f"{needed} is not installed: `nox -s matrix` has it")
