"""Identifiers that the library makes: time-ordered and unguessable."""

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

# Between a parent's id and the call's number; not allowed in ids that users choose. It may
# stand in a URL's path as it is.
CHILD_SEPARATOR = "~"
# Of the id of a request's workflow: 80 bits for whose it is, 130 for the key.
PRINCIPAL_CHARACTERS, KEY_CHARACTERS = 16, 26
REQUEST_ID_PATTERN = f"[a-z2-7]{{{PRINCIPAL_CHARACTERS + KEY_CHARACTERS}}}"
_OF_REQUEST = re.compile(f"{REQUEST_ID_PATTERN}(?:{CHILD_SEPARATOR}.*)?", re.DOTALL)


def new_id() -> str:
    """Return a new UUID version 7 (RFC 9562), 36 characters."""
    return str(uuid7())


def child_workflow_id(parent_id: str, step_number: int) -> str:
    """Return the id of the workflow that a parent calls at this place of its log."""
    return f"{parent_id}{CHILD_SEPARATOR}{step_number}"


def step_key(workflow_id: str, step_number: int) -> str:
    """Return a hash of a step's place, 26 characters of base 32 in lower case."""
    place = f"{workflow_id}{CHILD_SEPARATOR}{step_number}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(place, digest_size=16, person=b"durable step").digest()
    return base64.b32encode(digest).decode("ascii").rstrip("=").lower()


def principal_hash(workflow_id: str) -> str | None:
    """Return a hash of whose request a workflow belongs to, ``None`` if it is no request's."""
    return workflow_id[:PRINCIPAL_CHARACTERS] if _OF_REQUEST.fullmatch(workflow_id) else None
