"""The members of a JSON body that must not change between retries, where the others may."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from asgi_durable.errors import DurableUsageError
from asgi_durable.middleware.fingerprints.body_meaning import Meaning
from asgi_durable.middleware.fingerprints.canonical_json import write_json

__all__ = ["JsonMembers", "JsonPointer"]


class JsonMembers:
    """Finds the members of a JSON body that count. Any other body counts as a whole.

    Args:
        pointers: JSON pointers (RFC 6901) to the members, for example ``"/order/id"``. A missing
            member differs from one that is ``null``.

    Attributes:
        pointers: The parsed pointers.

    Raises:
        DurableUsageError: The sequence is empty or a string, or has an entry that is not a JSON
            pointer.
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
        """Return the members found in a body, as JSON; ``None`` if all of the body counts.

        All of it counts where no member is found: the pointers may be wrong, and two orders must
        not count as the same request because of that.
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


_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_BAD_ESCAPE = re.compile(r"~(?![01])")


class JsonPointer:
    """Leads to a member of a JSON document.

    Args:
        text: The pointer, for example ``"/order/id"``; ``""`` leads to the whole document.

    Attributes:
        text: The pointer as it was passed.

    Raises:
        ValueError: The text is not a JSON pointer.
    """

    def __init__(self, text: str) -> None:
        if text and not text.startswith("/"):
            msg = f"a JSON pointer is empty or begins with '/', got {text!r}"
            raise ValueError(msg)
        if _BAD_ESCAPE.search(text):
            msg = f"in a JSON pointer '~' is written '~0', got {text!r}"
            raise ValueError(msg)
        self.text = text
        # In this order: "~01" stands for "~1".
        parts = text.split("/")[1:]
        self._tokens = [part.replace("~1", "/").replace("~0", "~") for part in parts]

    def find(self, document: Any) -> Any:
        """Return the value that the pointer leads to.

        Raises:
            LookupError: The document has no such value.
        """
        value = document
        for token in self._tokens:
            if isinstance(value, dict):
                value = value[token]
            elif isinstance(value, list) and _INDEX.fullmatch(token):
                value = value[int(token)]
            else:
                raise LookupError(token)
        return value
