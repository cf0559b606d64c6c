"""Reads JSON texts exactly, and writes them in a canonical spelling."""

from __future__ import annotations

import decimal
import json
from typing import Any

__all__ = ["MAX_JSON_BYTES", "RepeatedNameError", "read_json", "read_keys_json", "write_json"]

# The default limit of a body; reading and writing take time in proportion to the length.
MAX_JSON_BYTES = 1024 * 1024
# To compare a longer number takes more than linear time.
_MAX_FLOAT_CHARACTERS = 1024


class RepeatedNameError(ValueError):
    """An object has a name twice; which value counts depends on the reader."""


def read_json(body: bytes) -> Any:
    """Return the document of a JSON text.

    Raises:
        ValueError: The text is not JSON, it is longer than ``MAX_JSON_BYTES`` or nested too
            deeply, or applications may read it differently: a name is repeated, or a number is
            not exactly a float.
    """
    if len(body) > MAX_JSON_BYTES:
        msg = f"it is longer than {MAX_JSON_BYTES} bytes"
        raise ValueError(msg)
    try:
        return _DECODER.decode(body.decode(json.detect_encoding(body), "surrogatepass"))
    except RecursionError as error:
        msg = "it is nested too deeply"
        raise ValueError(msg) from error


def read_keys_json(body: bytes) -> Any:
    """Return the document of a JSON text of any length, to look for a key in it.

    Whole numbers are strings in it.

    Raises:
        RepeatedNameError: A name is repeated.
        RecursionError: The text is nested too deeply.
        ValueError: The text is not JSON.
    """
    return _KEYS_DECODER.decode(body.decode(json.detect_encoding(body), "surrogatepass"))


def write_json(document: Any) -> bytes:
    """Return the canonical spelling of a document.

    Raises:
        ValueError: The document is nested too deeply.
    """
    try:
        return _ENCODER.encode(document).encode("ascii")
    except RecursionError as error:
        msg = "it is nested too deeply"
        raise ValueError(msg) from error


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        msg = "a name occurs twice"
        raise RepeatedNameError(msg)
    return members


def _exact_float(text: str) -> float:
    if len(text) > _MAX_FLOAT_CHARACTERS:
        msg = f"a number of {len(text)} characters"
        raise ValueError(msg)
    number = float(text)
    spelling = repr(number)
    if text != spelling and not _are_equal(text, spelling):
        # An app that reads numbers as decimals sees the difference.
        msg = f"{text} is no float"
        raise ValueError(msg)
    return number


def _are_equal(one: str, other: str) -> bool:
    try:
        return decimal.Decimal(one) == decimal.Decimal(other)
    except decimal.InvalidOperation:
        # The exponent is beyond that of any decimal.
        return False


# Made once: with these options `json.loads` and `json.dumps` make one for each text.
_DECODER = json.JSONDecoder(object_pairs_hook=_members, parse_float=_exact_float)
_KEYS_DECODER = json.JSONDecoder(object_pairs_hook=_members, parse_int=str)
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
