"""A fingerprint of some members of a JSON body, where the others may change between retries."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from asgi_durable.errors import DurableUsageError
from asgi_durable.middleware.asgi import Scope
from asgi_durable.middleware.fingerprint import RequestHash, canonical_json

__all__ = ["JsonMembers"]

_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")


class JsonMembers:
    """Makes the fingerprint of a request with a JSON body; that of any other one is of all of it.

    Args:
        pointers: JSON pointers (RFC 6901) to the members that count, ``"/order/id"`` say; one
            that is not there differs from one that is ``null``.

    Raises:
        DurableUsageError: One of them is no JSON pointer.
    """

    def __init__(self, pointers: Sequence[str]) -> None:
        for pointer in pointers:
            if isinstance(pointers, str) or (pointer and not pointer.startswith("/")):
                msg = f"fingerprint is a function or JSON pointers such as '/id', got {pointers!r}"
                raise DurableUsageError(msg)
        self._pointers = {pointer: _tokens(pointer) for pointer in pointers}

    def __call__(self, scope: Scope, body: bytes) -> str:
        """Return the fingerprint."""
        hashing = RequestHash(scope)
        hashing.add(self._said_by(body) if hashing.is_plain_json else body)
        return hashing.fingerprint()

    def _said_by(self, body: bytes) -> bytes:
        try:
            document = json.loads(canonical_json(body))
        except (ValueError, RecursionError):
            return body
        said: dict[str, Any] = {}
        for pointer, tokens in self._pointers.items():
            try:
                said[pointer] = _member(document, tokens)
            except LookupError:
                continue
        return json.dumps(said, sort_keys=True, separators=(",", ":")).encode("ascii")


def _tokens(pointer: str) -> list[str]:
    # In this order: "~01" is "~1".
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]


def _member(value: Any, tokens: Sequence[str]) -> Any:
    """Return what tokens lead to.

    Raises:
        LookupError: Nothing is there.
    """
    for token in tokens:
        if isinstance(value, dict):
            value = value[token]
        elif isinstance(value, list) and _INDEX.fullmatch(token):
            value = value[int(token)]
        else:
            raise LookupError(token)
    return value
