"""Clients that ask again until they are answered, as a careful caller does."""

from __future__ import annotations

import asyncio

import httpx

GIVE_UP_AFTER_SECONDS = 240.0
PAUSE_SECONDS = 0.05
# Statuses and errors that a client may see while a server dies, is down, or still works on the
# first attempt.
RETRIED_STATUSES = frozenset({409, 500, 502, 503})


async def post_until_answered(
    client: httpx.AsyncClient, url: str, key: str, json: object
) -> httpx.Response:
    """Send a keyed POST, again after every failure, with the same key and body."""
    async with asyncio.timeout(GIVE_UP_AFTER_SECONDS):
        while True:
            try:
                response = await client.post(url, json=json, headers={"Idempotency-Key": key})
            except httpx.TransportError:
                pass
            else:
                if response.status_code not in RETRIED_STATUSES:
                    return response
            await asyncio.sleep(PAUSE_SECONDS)
