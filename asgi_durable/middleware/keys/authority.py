"""Which of its names a service was called by."""

from __future__ import annotations

import re

from asgi_durable.errors import DurableUsageError

__all__ = ["checked_authority", "normal_authority"]

_AUTHORITY = re.compile(r"([A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_DEFAULT_PORTS = {"http": b"80", "https": b"443"}


def normal_authority(host: bytes, scheme: str) -> bytes:
    """Return one spelling of an authority: lower case, no default port, no dot at the end.

    Args:
        host: As in the header ``Host``; HTTP/2's ``:authority`` is given as one by servers.
        scheme: Of the request.
    """
    name, colon, port = host.strip(b" \t").lower().rpartition(b":")
    if not colon or port.endswith(b"]"):
        # Without a port; the colons of an IPv6 address are within brackets.
        return (name + colon + port).removesuffix(b".")
    name = name.removesuffix(b".")
    return name if port in (b"", _DEFAULT_PORTS.get(scheme)) else name + colon + port


def checked_authority(authority: str) -> bytes:
    """Return a policy's ``authority`` in its normal spelling.

    Raises:
        DurableUsageError: It is none.
    """
    if not isinstance(authority, str) or not _AUTHORITY.fullmatch(authority):
        msg = (
            "authority must be a host, with a port if it is part of the name, without a scheme or "
            f'a path, such as "shop.example"; got {authority!r}'
        )
        raise DurableUsageError(msg)
    return normal_authority(authority.encode("ascii"), "")
