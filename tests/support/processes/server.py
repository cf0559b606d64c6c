"""A uvicorn in a process of its own, that can be killed and started again."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from support.paths import EXAMPLES
from support.processes.ports import own_share

START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 60.0
POLL_SECONDS = 0.02
# Below the ports that systems give to clients: nobody takes ours while the server is down.
PORTS = own_share(range(10_000, 20_000))
_untried_ports = random.sample(PORTS, len(PORTS))


class Server:
    """Serves an app on one port and one folder, across kills.

    Args:
        folder: Working directory: databases and logs go there.
        app: As uvicorn takes it.
        app_dir: Where the app is imported from.
        environment: More environment variables.
        arguments: More arguments of uvicorn.
    """

    _has_own_group = False

    def __init__(
        self,
        folder: Path,
        app: str = "orders.main:app",
        *,
        app_dir: Path = EXAMPLES,
        environment: dict[str, str] | None = None,
        python: str = sys.executable,
        arguments: Sequence[str] = (),
    ) -> None:
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.kills = 0
        self.environment = environment or {}
        self._folder = folder
        self._command = [python, "-m", "uvicorn", app, "--app-dir", str(app_dir)]
        self._command += ["--port", str(self.port), "--no-access-log", *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """The lines that the server has printed so far."""
        return (self._folder / "server.log").read_text()

    @property
    def pid(self) -> int:
        """The process that was started last."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """True while the process exists."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and wait until it serves."""
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                start_new_session=self._has_own_group,
            )
        give_up_at = time.monotonic() + START_TIMEOUT_SECONDS
        while not self._accepts():
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                message = f"the server did not start:\n{self.log}"
                raise AssertionError(message)
            time.sleep(POLL_SECONDS)

    def kill(self) -> None:
        """End the server with SIGKILL."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(STOP_TIMEOUT_SECONDS)
        self.kills += 1

    def terminate(self) -> int:
        """End the server with SIGTERM; return its exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(STOP_TIMEOUT_SECONDS)

    def pause(self) -> None:
        """Stop the server with SIGSTOP, until :meth:`resume`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the server continue after :meth:`pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def wait(self) -> int:
        """Wait until the server has ended by itself; return its exit code."""
        assert self._process is not None
        return self._process.wait(STOP_TIMEOUT_SECONDS)

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it, however it is."""
        if self.is_running:
            self.kill()

    def _accepts(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
        except OSError:
            return False
        return True


def _free_port() -> int:
    while True:
        port = _untried_ports.pop()
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
