"""The members of a JSON body that must not change between retries, where the others may."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asgi_durable.errors import DurableUsageError
from asgi_durable.middleware.body_meaning import Meaning
from asgi_durable.middleware.canonical_json import write_json
from asgi_durable.middleware.json_pointer import JsonPointer

__all__ = ["JsonMembers"]


class JsonMembers:
    """Finds the members of a JSON body that count; of any other body all counts.

    Args:
        pointers: JSON pointers (RFC 6901) to them, ``"/order/id"`` say; one that is not there
            differs from one that is ``null``.

    Attributes:
        pointers: Those.

    Raises:
        DurableUsageError: One of them is no JSON pointer, or there is none.
    """

    def __init__(self, pointers: Sequence[str]) -> None:
        msg = f"fingerprint is a function or JSON pointers such as '/id', got {pointers!r}"
        if isinstance(pointers, str) or not pointers:
            raise DurableUsageError(msg)
        try:
            self.pointers = [JsonPointer(pointer) for pointer in pointers]
        except ValueError as error:
            raise DurableUsageError(msg) from error

    def members_of(self, meaning: Meaning) -> bytes | None:
        """Return what is found in a body; ``None`` if all of the body counts.

        That is so where nothing is found: it may be an error of the application's, and two
        orders must not be taken for one because of it.
        """
        if not meaning.is_json:
            return None
        found: dict[str, Any] = {}
        for pointer in self.pointers:
            try:
                found[pointer.text] = pointer.find(meaning.document)
            except LookupError:
                continue
        return write_json(found) if found else None
