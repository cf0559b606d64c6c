"""ASGI's types, and headers as the protocol carries them: ordered pairs of bytes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

__all__ = [
    "ASGIApp",
    "Headers",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "header_values",
    "make_rereadable",
    "replace_header",
    "route_path",
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


# What servers give, almost always; looked at for each request.
_REREADABLE = frozenset({list, tuple, type(None)})


def make_rereadable(scope: Scope) -> None:
    """Replace what a scope has as an iterator, so that everybody who reads it finds it whole.

    The specification asks for iterables alone, and one that is read once is gone.
    """
    headers = scope.get("headers")
    if headers.__class__ not in _REREADABLE:
        scope["headers"] = [(name, value) for name, value in headers or ()]
    if scope.get("client").__class__ not in _REREADABLE:
        scope["client"] = tuple(scope["client"])
    if scope.get("server").__class__ not in _REREADABLE:
        scope["server"] = tuple(scope["server"])


def header_values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """Return the values of all lines of a header; *name* is in lower case."""
    return [value for key, value in headers if key.lower() == name]


def replace_header(headers: Iterable[tuple[bytes, bytes]], name: bytes, value: bytes) -> Headers:
    """Return the headers with exactly one line of this name; *name* is in lower case."""
    return [(key, old) for key, old in headers if key.lower() != name] + [(name, value)]


def route_path(scope: Scope) -> str:
    """Return a request's path below where its application is mounted."""
    path: str = scope["path"]
    below = path.removeprefix(scope.get("root_path", ""))
    # Servers disagree on whether a path begins with where the application is mounted.
    return below if below.startswith("/") else path if below else "/"
