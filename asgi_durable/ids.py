"""Identifiers that the library makes."""

from __future__ import annotations

import base64
import hashlib
import re
import sys

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid_utils import uuid7

__all__ = [
    "KEY_CHARACTERS",
    "PRINCIPAL_CHARACTERS",
    "REQUEST_ID_PATTERN",
    "child_workflow_id",
    "new_id",
    "principal_hash",
    "step_key",
]

# Between a parent's id and the number of the call. Ids that users choose must not contain it, and
# a URL's path may contain it without escaping.
CHILD_SEPARATOR = "~"
# The id of a request's workflow has 80 bits for the principal and 130 bits for the key.
PRINCIPAL_CHARACTERS, KEY_CHARACTERS = 16, 26
REQUEST_ID_PATTERN = f"[a-z2-7]{{{PRINCIPAL_CHARACTERS + KEY_CHARACTERS}}}"
_OF_REQUEST = re.compile(f"{REQUEST_ID_PATTERN}(?:{CHILD_SEPARATOR}.*)?", re.DOTALL)


def new_id() -> str:
    """Return a new UUID version 7 (RFC 9562), 36 characters."""
    return str(uuid7())


def child_workflow_id(parent_id: str, step_number: int) -> str:
    """Return the id of the workflow that a parent calls at this place in its step log."""
    return f"{parent_id}{CHILD_SEPARATOR}{step_number}"


def step_key(workflow_id: str, step_number: int) -> str:
    """Return a hash of a step's place in its log: 26 characters of lower-case base 32."""
    place = f"{workflow_id}{CHILD_SEPARATOR}{step_number}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(place, digest_size=16, person=b"durable step").digest()
    return base64.b32encode(digest).decode("ascii").rstrip("=").lower()


def principal_hash(workflow_id: str) -> str | None:
    """Return the hash of a request's principal; ``None`` if the workflow belongs to no request."""
    return workflow_id[:PRINCIPAL_CHARACTERS] if _OF_REQUEST.fullmatch(workflow_id) else None
