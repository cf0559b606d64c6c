"""Checks of all responses of a kind, whatever the row."""

from __future__ import annotations

import json
from typing import Any

from support.asgi import Exchange

__all__ = ["is_failure", "is_own", "is_problem", "is_replay", "is_unmarked"]

MARKS = ("durable-id", "idempotency-key", "idempotent-replayed", "idempotency-status")
# Headers of the application's that belong to its response; others concern the moment.
KEPT = ("content-type", "content-length", "location", "etag")


def is_unmarked(result: Exchange, status: int) -> None:
    """Check that the application has responded, and nobody has added headers to its response."""
    assert result.status == status
    assert [name for name in MARKS if result.headers(name)] == []
    assert result.is_complete


def is_own(result: Exchange, status: int, *, key: str = "k") -> None:
    """Check for the response of the work itself: it has key and id, and no mark of a replay."""
    assert result.status == status
    assert result.headers("idempotency-key") == [key]
    assert len(result.headers("durable-id")) == 1
    assert result.headers("idempotent-replayed") == []
    assert result.headers("idempotency-status") == []
    assert result.is_complete


def is_failure(result: Exchange, status: int) -> None:
    """Check that the work failed; an application's response to an error may have no marks."""
    assert (result.status, result.headers("idempotent-replayed")) == (status, [])
    assert result.is_complete


def is_replay(result: Exchange, first: Exchange, *, key: str | None = "k") -> None:
    """Check that a first response was replayed, byte for byte, and marked as such.

    Args:
        result: The later response.
        first: The first one.
        key: The key of the later request, ``None`` if it had none.
    """
    assert (result.status, result.body) == (first.status, first.body)
    assert [result.headers(name) for name in KEPT] == [first.headers(name) for name in KEPT]
    assert result.headers("idempotent-replayed") == ["true"]
    assert result.headers("idempotency-key") == ([] if key is None else [key])
    assert result.headers("durable-id") == first.headers("durable-id") != []
    # Headers of the moment are not replayed.
    assert result.headers("set-cookie") == result.headers("date") == []
    assert result.headers("x-request-id") not in ([], first.headers("x-request-id"))
    assert result.is_complete


def is_problem(
    result: Exchange, status: int, code: str, *, retryable: bool, has_page: bool = True
) -> dict[str, Any]:
    """Check that a response has problem details, and return them."""
    problem: dict[str, Any] = json.loads(result.body)
    assert (result.status, problem["status"], problem["code"]) == (status, status, code)
    assert problem["type"] == f"urn:asgi-durable:problem:{code.lower().replace('_', '-')}"
    assert problem["retryable"] is retryable
    assert result.headers("content-type") == ["application/problem+json"]
    assert problem["request_id"] == result.headers("x-request-id")[0]
    seconds = result.headers("retry-after")
    assert bool(seconds) is retryable
    assert problem.get("retry_after") == (int(seconds[0]) if seconds else None)
    if ids := result.headers("durable-id"):
        assert problem["idempotency_key"] == result.headers("idempotency-key")[0].strip('"')
        page = f"/durable/requests/{ids[0]}" if has_page else None
        assert problem.get("instance") == page
    assert result.is_complete
    return problem
