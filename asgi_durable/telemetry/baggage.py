"""W3C baggage: the members that an application lets its workflows store.

Its own reader and writer of the header, as OpenTelemetry's propagator reads ``+`` as a blank, which
the specification does not, and leaves the properties of a member in its value.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from urllib.parse import quote, unquote

from opentelemetry import baggage

from asgi_durable.errors import DurableUsageError

__all__ = [
    "MAX_BAGGAGE_BYTES",
    "baggage_keys",
    "baggage_of",
    "current_members",
    "format_baggage",
    "has_properties",
    "parse_baggage",
    "trace_of",
    "with_baggage",
]

# It is stored in a row of the step log, so far less than the 8192 bytes that a header may have.
MAX_BAGGAGE_BYTES = 1024

_KEY = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")
# Characters that need no percent-encoding, besides letters and digits.
_SAFE = "!#$&'()*+-./:<=>?@[]^_`{|}~"
_BLANKS = " \t"
# Stands between the trace and the baggage that a workflow stores: neither can contain it.
_SEPARATOR = "\n"


def baggage_keys(keys: Iterable[str]) -> frozenset[str]:
    """Return the keys of members that workflows may store.

    Raises:
        DurableUsageError: A key is invalid, or the keys are one string.
    """
    if isinstance(keys, str):
        msg = f"baggage keys are several strings, as in [{keys!r}]; got one"
        raise DurableUsageError(msg)
    found = frozenset(keys)
    for key in found:
        if not isinstance(key, str) or _KEY.fullmatch(key) is None:
            msg = f"a key of W3C baggage is letters, digits and !#$%&'*+-.^_`|~, got {key!r}"
            raise DurableUsageError(msg)
    return found


def parse_baggage(text: str | None, keys: Collection[str] | None = None) -> dict[str, str]:
    """Return the members of a ``baggage``, decoded and without their properties.

    Malformed members are left out. Of two with one key the later one counts.

    Args:
        text: The header; several lines of it are joined by commas before.
        keys: The keys of the wanted members, ``None`` for all.

    Source:
        W3C Baggage, section 3.3.1.
    """
    members: dict[str, str] = {}
    for member in text.split(",") if text else ():
        pair, *properties = member.split(";")
        key, equals, value = _halves(pair)
        is_wanted = equals and (keys is None or key in keys) and _KEY.fullmatch(key)
        if is_wanted and _VALUE.fullmatch(value) and all(map(_is_property, properties)):
            members[key] = unquote(value)
    return members


def format_baggage(members: Mapping[str, str]) -> str | None:
    """Return a ``baggage`` header with as many members as fit into 1 kB, in their order."""
    parts: list[str] = []
    room = MAX_BAGGAGE_BYTES
    for key, value in members.items():
        member = f"{key}={quote(value, safe=_SAFE, errors='replace')}"
        needed = len(member) + bool(parts)
        if needed <= room:
            parts.append(member)
            room -= needed
    return ",".join(parts) or None


def current_members(keys: Collection[str]) -> dict[str, str]:
    """Return the wanted members of OpenTelemetry's current baggage."""
    return {key: str(value) for key, value in baggage.get_all().items() if key in keys}


def has_properties(found: object, value: str) -> bool:
    """Tell whether a member of OpenTelemetry's baggage is a value followed by its properties.

    OpenTelemetry's propagator leaves the properties in the value.
    """
    return isinstance(found, str) and found.startswith(f"{value};")


def with_baggage(trace: str | None, header: str | None) -> str | None:
    """Return the text that a workflow stores: the trace, a line break, and the baggage if any."""
    return trace if header is None else f"{trace or ''}{_SEPARATOR}{header}"


def trace_of(stored: str | None) -> str | None:
    """Return the trace in the text that a workflow stores."""
    return stored.partition(_SEPARATOR)[0] or None if stored is not None else None


def baggage_of(stored: str | None) -> str | None:
    """Return the baggage in the text that a workflow stores."""
    return stored.partition(_SEPARATOR)[2] or None if stored is not None else None


def _halves(pair: str) -> tuple[str, str, str]:
    key, equals, value = pair.partition("=")
    return key.strip(_BLANKS), equals, value.strip(_BLANKS)


def _is_property(text: str) -> bool:
    key, _, value = _halves(text)
    return bool(_KEY.fullmatch(key) and _VALUE.fullmatch(value))
