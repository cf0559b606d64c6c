"""What a keyed request is called, for people."""

from __future__ import annotations

from asgi_durable.middleware.asgi import Scope

__all__ = ["request_name"]


def request_name(scope: Scope) -> str:
    """Return a request's method and path; where a character cannot be printed, escaped.

    A client may send any: a line's end would break a log, and no text of a database can have
    what is no Unicode, nor Postgres' a NUL.
    """
    name = f"{scope['method']} {scope['path']}"
    return name if name.isprintable() else name.encode("unicode_escape").decode("ascii")
