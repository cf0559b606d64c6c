"""No server serves an application whose startup has failed."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path

import pytest
from support.processes.asgi_servers import ASGI_SERVERS, ASGIServer


@pytest.mark.parametrize("app", ["installed", "wrapped", "raw", "plugged"])
@pytest.mark.parametrize("name", ASGI_SERVERS)
def test_a_server_ends_if_its_application_cannot_start(
    name: str, app: str, tmp_path: Path, sqlite_url: str
) -> None:
    server = ASGIServer(
        name,
        tmp_path,
        f"failing_program:{app}",
        app_dir=Path(__file__).parent,
        environment={"ASGI_DURABLE_URL": sqlite_url},
    )

    with suppress(AssertionError):
        # Some take connections before they start the application.
        server.start()

    # Invariant: nothing stops the server; one that serves would run until the test gives up.
    assert server.wait() not in (None, -signal.SIGKILL)
    assert "no such setting" in server.log
