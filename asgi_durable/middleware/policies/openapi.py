"""Describes keys, and the responses to wrong ones, for OpenAPI documents."""

from __future__ import annotations

from typing import Any

from asgi_durable.middleware.keys.key_sources import MAX_KEY_BYTES, HeaderKey
from asgi_durable.middleware.policies.policy import IdempotencyPolicy

__all__ = [
    "PROBLEM_MEDIA_TYPE",
    "key_parameter",
    "problem_descriptions",
    "problem_schema",
    "response_headers",
]

PROBLEM_MEDIA_TYPE = "application/problem+json"

_WRONG_KEY = "The key is missing or malformed"
_NOT_STORED = "The request was carried out, and its response was not stored or has expired"
_DESCRIPTIONS = (
    ("IN_PROGRESS", "A request with the key is still running"),
    ("KEY_MISSING", _WRONG_KEY),
    ("KEY_MALFORMED", _WRONG_KEY),
    ("KEY_REUSED", "The key was used for another request"),
    ("RESPONSE_NOT_KEPT", _NOT_STORED),
    ("KEY_EXPIRED", _NOT_STORED),
)
_NOT_VERIFIED = ("REQUEST_NOT_VERIFIED", "The request could not be verified")


def key_parameter(policy: IdempotencyPolicy) -> dict[str, Any] | None:
    """Return the key's header as a Parameter Object; ``None`` if the key is in no header."""
    source = policy.key_source
    if not isinstance(source, HeaderKey):
        return None
    return {
        "name": source.name,
        "in": "header",
        "required": policy.required,
        "description": "Makes the request durable: sent again under its key, it is not carried "
        "out again, and its response is the same.",
        "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_BYTES},
    }


def problem_descriptions(policy: IdempotencyPolicy) -> dict[str, str]:
    """Return the descriptions of the problem responses to a keyed request, by status code."""
    described: dict[str, str] = {}
    of_verify = (_NOT_VERIFIED,) if policy.verify is not None else ()
    for code, description in (*_DESCRIPTIONS, *of_verify):
        status = str(policy.status_by_code[code])
        known = described.get(status)
        if known is None:
            described[status] = description
        elif description not in known:
            described[status] = f"{known}, or: {description}"
    return dict(sorted(described.items()))


def response_headers() -> dict[str, str]:
    """Return the descriptions of the headers of a keyed request's response, by name."""
    return {
        "Durable-Id": "The id of the request's workflow",
        "Idempotent-Replayed": "Is true, and there, if the request was carried out before",
    }


def problem_schema() -> dict[str, Any]:
    """Return the schema of a problem document (RFC 9457)."""
    members = {
        "type": "string",
        "title": "string",
        "status": "integer",
        "detail": "string",
        "code": "string",
        "error": "string",
        "retryable": "boolean",
    }
    return {
        "type": "object",
        "title": "Problem",
        "properties": {
            **{name: {"type": kind} for name, kind in members.items()},
            "request_id": {"type": ["string", "null"]},
            # Only in the responses to keyed requests, if they are known.
            "idempotency_key": {"type": "string"},
            "instance": {"type": "string"},
            "run": {"type": "integer"},
            "retry_after": {"type": "integer"},
        },
        "required": [*members, "request_id"],
    }
