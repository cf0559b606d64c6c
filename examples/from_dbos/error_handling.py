"""Errors: what a handler raises is what the client gets, as problem details (RFC 9457)."""

from __future__ import annotations

from fastapi import FastAPI

from asgi_durable import Durable, DurableError
from asgi_durable_fastapi import install

app = FastAPI()
durable = Durable()
install(app, durable)


@app.get("/data/{data_id}")
@durable.workflow
async def get_data(data_id: str) -> dict[str, str]:
    """Refuse what is no number."""
    if not data_id.isdigit():
        message = "Invalid ID format"
        raise DurableError(message, code="INVALID_ID", status_code=400)
    return {"id": data_id}
