"""JSON texts, read exactly and written again in one spelling."""

from __future__ import annotations

import decimal
import json
from typing import Any

__all__ = ["MAX_JSON_BYTES", "RepeatedNameError", "read_json", "read_keys_json", "write_json"]

# As long as a body is by default; both ways take time in proportion to the length.
MAX_JSON_BYTES = 1024 * 1024
# A number of more digits takes more than that.
_MAX_FLOAT_CHARACTERS = 1024


class RepeatedNameError(ValueError):
    """An object has a name twice: which value counts depends on who reads it."""


def read_json(body: bytes) -> Any:
    """Return what a JSON text means.

    Raises:
        ValueError: It is no JSON, it is too long, or applications may read it differently: a
            name is repeated, or a number is not exactly a float.
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
    """Return a JSON text of any length in which a key is looked for; whole numbers as strings.

    Raises:
        RepeatedNameError: A name is repeated.
        RecursionError: It is nested too deeply.
        ValueError: It is no JSON.
    """
    return _KEYS_DECODER.decode(body.decode(json.detect_encoding(body), "surrogatepass"))


def write_json(document: Any) -> bytes:
    """Return the one spelling of a document.

    Raises:
        ValueError: It is nested too deeply.
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
        # An app that reads decimals sees the difference.
        msg = f"{text} is no float"
        raise ValueError(msg)
    return number


def _are_equal(one: str, other: str) -> bool:
    try:
        return decimal.Decimal(one) == decimal.Decimal(other)
    except decimal.InvalidOperation:
        # Of an exponent that no decimal has.
        return False


# Made once: `json.loads` and `json.dumps` make one for each text that is read or written so.
_DECODER = json.JSONDecoder(object_pairs_hook=_members, parse_float=_exact_float)
_KEYS_DECODER = json.JSONDecoder(object_pairs_hook=_members, parse_int=str)
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
