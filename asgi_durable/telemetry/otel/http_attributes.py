"""Attributes of HTTP requests, by the stable semantic conventions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

from asgi_durable.context import current_request

__all__ = ["request_attributes", "route_of", "without_secrets"]

_PORTS = {"http": 80, "https": 443}
# Query parameters whose values are secrets, in lower case and without `-` and `_`.
_SECRETS = frozenset(
    {
        "accesstoken",
        "apikey",
        "auth",
        "authorization",
        "awsaccesskeyid",
        "clientsecret",
        "code",
        "credentials",
        "csrftoken",
        "idtoken",
        "jwt",
        "key",
        "passwd",
        "password",
        "refreshtoken",
        "secret",
        "session",
        "sessionid",
        "sig",
        "signature",
        "token",
        "xamzcredential",
        "xamzsecuritytoken",
        "xamzsignature",
        "xapikey",
        "xgoogsignature",
    }
)
# The separators in a nested name: `user[password]`, `user.password`.
_BETWEEN_PARTS = re.compile(r"[\[\].]+")


def request_attributes(scope: Mapping[str, Any], method: str, host: str | None) -> dict[str, Any]:
    """Return the attributes of a request's span that are known at its start.

    Args:
        scope: An HTTP scope.
        method: One that is known, else ``_OTHER``.
        host: The value of the ``Host`` header.
    """
    scheme = scope.get("scheme", "http")
    attributes: dict[str, Any] = {
        "http.request.method": method,
        "url.path": scope["path"],
        "url.scheme": scheme,
        "network.protocol.version": scope.get("http_version", "1.1"),
    }
    if method == "_OTHER":
        attributes["http.request.method_original"] = scope["method"]
    query = scope.get("query_string")
    if query:
        attributes["url.query"] = without_secrets(query.decode("latin-1"))
    address, port = _split_host(host) if host else scope.get("server") or (None, None)
    if address:
        attributes["server.address"] = address
        attributes["server.port"] = port or _PORTS.get(scheme, 0)
    client = scope.get("client")
    if client:
        attributes["client.address"] = client[0]
    request = current_request.get()
    if request is not None:
        attributes["durable.request.id"] = request.request_id
    return attributes


def _split_host(host: str) -> tuple[str, int | None]:
    """Return what a Host header names, without the user that a client may write into it."""
    host = host.rpartition("@")[2]
    address, _, port = host.rpartition(":")
    if not (address and port.isdecimal() and len(port) <= 5):
        address, port = host, ""
    if address.startswith("[") and address.endswith("]"):
        # An IPv6 address: the brackets belong to the URL.
        address = address[1:-1]
    return address, int(port) if port else None


def without_secrets(query: str) -> str:
    """Return a query string with the values of its secrets replaced by ``REDACTED``."""
    pairs = parse_qsl(query, keep_blank_values=True)
    return urlencode([(key, "REDACTED" if _is_secret(key) else value) for key, value in pairs])


def _is_secret(name: str) -> bool:
    plain = name.lower().replace("-", "").replace("_", "")
    return plain in _SECRETS or any(part in _SECRETS for part in _BETWEEN_PARTS.split(plain))


def route_of(scope: Mapping[str, Any]) -> str | None:
    """Return the pattern that a request's path has matched, where the framework tells."""
    template = scope.get("path_template")
    if template:
        return str(template)
    within = scope.get("fastapi")
    found = within.get("effective_route_context") if isinstance(within, dict) else None
    route = found or scope.get("route")
    path = getattr(route, "path_format", None)
    if not isinstance(path, str):
        return None
    # Of a mounted application the path begins after where it is mounted.
    is_mount = hasattr(route, "app") and getattr(route, "endpoint", None) is None
    return str(scope.get("root_path", "")) + ("/{path}" if is_mount else path)
