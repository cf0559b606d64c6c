"""Run the example order service from an installed wheel; the session ``package`` calls this.

Arguments: the folder of the examples; a folder to work in. Needs the standard library only.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

EXAMPLES, FOLDER = Path(sys.argv[1]), Path(sys.argv[2])
ORDER = {"user_id": "ada", "item_id": "book", "quantity": 1}
PATIENCE_SECONDS = 60.0


def free_port() -> int:
    """Return a port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(port: int) -> subprocess.Popen[bytes]:
    """Start the service and wait until it serves."""
    command = [sys.executable, "-m", "uvicorn", "orders.main:app", "--app-dir", str(EXAMPLES)]
    server = subprocess.Popen([*command, "--port", str(port)], cwd=FOLDER)
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            if server.poll() is not None or time.monotonic() > give_up_at:
                raise
            time.sleep(0.05)
        else:
            return server


def place_order(port: int) -> tuple[bytes, Any]:
    """Place an order with a key; return the body and the headers of the response."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/orders",
        data=json.dumps(ORDER).encode(),
        headers={"Content-Type": "application/json", "Idempotency-Key": "from-a-wheel"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        return answer.read(), answer.headers


def main() -> None:
    """Order, kill the service, and order again: the same response, and one order."""
    import asgi_durable

    location = Path(asgi_durable.__file__)
    assert "site-packages" in location.parts, f"not the wheel: {location}"
    assert (location.parent / "py.typed").exists()
    port = free_port()
    server = start(port)
    try:
        first, _ = place_order(port)
        server.send_signal(signal.SIGKILL)
        server.wait()
        server = start(port)
        again, headers = place_order(port)
    finally:
        server.kill()
        server.wait()
    assert json.loads(first) == {"order_id": "1", "status": "confirmed"}, first
    assert again == first, again
    assert headers["Idempotent-Replayed"] == "true", headers
    sys.stdout.write("the wheel runs the example\n")


main()
