"""Quick start: a durable workflow behind a route, in an application of a few lines."""

from __future__ import annotations

from fastapi import FastAPI

from asgi_durable import Durable
from asgi_durable_fastapi import install

app = FastAPI()
durable = Durable()
install(app, durable)


@app.get("/user/{user_id}")
@durable.workflow
async def get_user(user_id: str) -> dict[str, str]:
    """Respond with what a step has fetched."""
    return {"user": await fetch_user(user_id)}


@durable.step
async def fetch_user(user_id: str) -> str:
    """Fetch a user; retried on failure."""
    return f"User {user_id}"
