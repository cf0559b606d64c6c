"""Request ids: the client's own, or a new one; in the response, and in all work of the request."""

from __future__ import annotations

from fastapi import FastAPI

from asgi_durable import Durable
from asgi_durable_fastapi import install

app = FastAPI()
# `X-Request-ID` is read and sent by default; the first of these is sent.
durable = Durable(request_id_headers=["X-Request-ID", "dbos-request-id"])
install(app, durable)


@app.get("/endpoint")
@durable.workflow
async def endpoint() -> dict[str, str | None]:
    """Respond with the id, and with what the request was."""
    request = durable.request
    return {
        "request_id": durable.request_id,
        "method": request.method if request is not None else None,
        "client": request.client if request is not None else None,
    }
