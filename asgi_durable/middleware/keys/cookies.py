"""Cookies of requests and responses: names and values as they were sent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from asgi_durable.errors import DurableUsageError
from asgi_durable.middleware.asgi import TOKEN

__all__ = ["cookie_pairs", "names_of_session", "renewed_cookie"]

# How a response deletes a cookie.
_DELETED = re.compile(rb";\s*(max-age=(0|-\d+)|expires=[^;]*\b1970\b[^;]*)\s*(;|$)", re.IGNORECASE)


def names_of_session(name: str) -> re.Pattern[bytes]:
    """Return a pattern for the names of a session's cookie and of the parts of a long one.

    Frameworks split a session of more than 4 kB into ``NAME-0``, ``NAME-1``, others into
    ``NAME.0`` or ``NAME_0``.

    Raises:
        DurableUsageError: The name is not legal for a cookie.
    """
    if not isinstance(name, str) or not TOKEN.fullmatch(name):
        msg = f'session_cookie must be the name of a cookie, such as "session"; got {name!r}'
        raise DurableUsageError(msg)
    return re.compile(re.escape(name.encode("ascii")) + rb"(?:[-._][0-9]+)?")


def cookie_pairs(lines: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Return all cookies of a request in order, including several with the same name.

    Frameworks strip spaces, also no-break spaces, from names and values. So does this function,
    as it has to find the same cookies.
    """
    # Not Starlette's parser: it returns one value for a name, and removes quotes.
    for line in lines:
        for pair in line.decode("latin-1").split(";"):
            name, _, value = pair.partition("=")
            yield name.strip().encode("latin-1"), value.strip().encode("latin-1")


def renewed_cookie(header: bytes, names: re.Pattern[bytes]) -> tuple[bytes, bytes] | None:
    """Return the name and the new value that a ``Set-Cookie`` sets for a cookie of these names.

    ``None`` if it sets another cookie, or deletes this one.
    """
    name, _, rest = header.partition(b"=")
    if not names.fullmatch(name.strip()) or _DELETED.search(rest):
        return None
    return name.strip(), rest.partition(b";")[0].strip()
