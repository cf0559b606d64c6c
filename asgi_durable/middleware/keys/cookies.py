"""Cookies of requests and answers: names and values, as they were sent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from asgi_durable.errors import DurableUsageError

__all__ = ["cookie_pairs", "names_of_session", "renewed_cookie"]

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 6265, section 4.1.1
# How an answer takes a cookie back.
_GONE = re.compile(rb";\s*(max-age=(0|-\d+)|expires=[^;]*\b1970\b[^;]*)\s*(;|$)", re.IGNORECASE)


def names_of_session(name: str) -> re.Pattern[bytes]:
    """Return a pattern of the names that a session's cookie has, and the parts of a long one.

    A session over 4 kB is split by frameworks into ``NAME-0``, ``NAME-1``, by others into
    ``NAME.0`` or ``NAME_0``.

    Raises:
        DurableUsageError: No cookie has such a name.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        msg = f'session_cookie must be the name of a cookie, such as "session"; got {name!r}'
        raise DurableUsageError(msg)
    return re.compile(re.escape(name.encode("ascii")) + rb"(?:[-._][0-9]+)?")


def cookie_pairs(lines: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Return all cookies of a request in order, those of one name each.

    What frameworks strip from names and values, no-break spaces too, is stripped here as well:
    else a cookie could count there and not here.
    """
    for line in lines:
        for pair in line.decode("latin-1").split(";"):
            name, _, value = pair.partition("=")
            yield name.strip().encode("latin-1"), value.strip().encode("latin-1")


def renewed_cookie(header: bytes, names: re.Pattern[bytes]) -> tuple[bytes, bytes] | None:
    """Return the name and the new value that a ``Set-Cookie`` gives a cookie of these names.

    ``None`` where it is another cookie, or is taken back.
    """
    name, _, rest = header.partition(b"=")
    if not names.fullmatch(name.strip()) or _GONE.search(rest):
        return None
    return name.strip(), rest.partition(b";")[0].strip()
