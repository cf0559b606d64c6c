"""JSON pointers (RFC 6901)."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["JsonPointer"]

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
