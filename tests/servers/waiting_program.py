"""An application whose handler waits for its client to leave, once; and then answers.

The database is that of ``ASGI_DURABLE_URL``. The handler leaves a file where it runs.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from asgi_durable_fastapi import install
from fastapi import FastAPI, Request

from asgi_durable import Durable

app = FastAPI()
BEGUN = Path("begun")


@app.post("/wait")
async def wait(request: Request) -> str:
    """Wait until the client has gone, the first time."""
    if BEGUN.exists():
        return "done"
    BEGUN.touch()
    while not await request.is_disconnected():  # noqa: ASYNC110  there is no event to wait for
        await asyncio.sleep(0.01)
    return "a part"


install(app, Durable())
