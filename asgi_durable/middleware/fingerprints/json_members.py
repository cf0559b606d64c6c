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


_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_BAD_ESCAPE = re.compile(r"~(?![01])")


class JsonPointer:
    """Leads to a member of a JSON document.

    Args:
        text: ``"/order/id"``, say; ``""`` leads to the whole.

    Attributes:
        text: That.

    Raises:
        ValueError: It is no pointer.
    """

    def __init__(self, text: str) -> None:
        if text and not text.startswith("/"):
            msg = f"a JSON pointer is empty or begins with '/', got {text!r}"
            raise ValueError(msg)
        if _BAD_ESCAPE.search(text):
            msg = f"in a JSON pointer '~' is written '~0', got {text!r}"
            raise ValueError(msg)
        self.text = text
        # In this order: "~01" is "~1".
        parts = text.split("/")[1:]
        self._tokens = [part.replace("~1", "/").replace("~0", "~") for part in parts]

    def find(self, document: Any) -> Any:
        """Return what the pointer leads to.

        Raises:
            LookupError: Nothing is there.
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
