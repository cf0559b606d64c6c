"""An application whose handler responds; with ``WAITS`` it waits for its client to leave first.

The database is that of ``ASGI_DURABLE_URL``.
"""

from __future__ import annotations

import asyncio
import os
import sys

from fastapi import FastAPI, Request

from asgi_durable import Durable
from asgi_durable_fastapi import install

app = FastAPI()


@app.post("/wait")
async def wait(request: Request) -> str:
    """Print that it waits, and wait."""
    if not os.environ.get("WAITS"):
        return "done"
    sys.stdout.write("waits\n")
    sys.stdout.flush()
    while not await request.is_disconnected():
        await asyncio.sleep(0.01)
    return "a part"


install(app, Durable())
