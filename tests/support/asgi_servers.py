"""The ASGI servers that people use, each in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from support.server import Server

TESTS = Path(__file__).parents[1]
ADDRESS = "127.0.0.1"


def uvicorn(app: str, port: int) -> list[str]:
    """Return the command of a uvicorn."""
    return ["uvicorn", app, "--host", ADDRESS, "--port", str(port), "--no-access-log"]


def hypercorn(app: str, port: int) -> list[str]:
    """Return the command of a hypercorn; it serves in the process that is started."""
    return ["hypercorn", app, "--bind", f"{ADDRESS}:{port}", "--workers", "0"]


def granian(app: str, port: int) -> list[str]:
    """Return the command of a granian; it serves in a child of the process that is started."""
    options = ["--interface", "asgi", "--host", ADDRESS, "--port", str(port), "--workers", "1"]
    return ["granian", *options, app]


ASGI_SERVERS: dict[str, Callable[[str, int], list[str]]] = {
    command.__name__: command for command in (uvicorn, hypercorn, granian)
}


class ASGIServer(Server):
    """Serves an app by one of the servers; the app may import what tests support.

    Used as a context manager it is told to stop at the end.

    Args:
        name: Which one of ``ASGI_SERVERS``.
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
        self._command = [sys.executable, "-m", *ASGI_SERVERS[name](app, self.port)]

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
