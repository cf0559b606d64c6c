"""Idempotency: a payment that is made once, however often the request is sent."""

from __future__ import annotations

import httpx
from fastapi import FastAPI
from pydantic import BaseModel

from asgi_durable import Durable
from asgi_durable_fastapi import install

app = FastAPI()
durable = Durable()
install(app, durable)


class Payment(BaseModel):
    """How much, and from whom."""

    amount: int
    user_id: str


@durable.step
async def charge(payment: Payment, key: str) -> str:
    """Ask a payment provider, which recognises repetitions by the key."""
    return f"charge-{payment.user_id}-{payment.amount}-{key[:4]}"


@durable.step
async def key_for_provider() -> str:
    """Return a key that is the same however often the step is tried."""
    return durable.idempotency_key_for_step()


@app.post("/payment")
async def pay(payment: Payment) -> dict[str, str]:
    """A handler need not be a workflow: the request with a key is one."""
    return {"charge": await charge(payment, await key_for_provider())}


async def send_payment(client: httpx.AsyncClient) -> httpx.Response:
    """Send a payment; after a network error it can be sent again as it is."""
    return await client.post(
        "/payment",
        json={"amount": 100, "user_id": "123"},
        headers={"Idempotency-Key": "payment-abc-123"},
    )
