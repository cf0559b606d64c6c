"""Translates the DSNs of asyncpg to parameters of libpq, the library of psycopg."""

from __future__ import annotations

import math
from urllib.parse import SplitResult, parse_qsl, quote, unquote, unquote_plus, urlsplit, urlunsplit

__all__ = ["connection_parameters", "dsns_of"]

# A peer that acknowledges no probe for so long is lost; `sockets` sets the same for asyncpg.
KEEPALIVES = {
    "keepalives": "1",
    "keepalives_idle": "5",
    "keepalives_interval": "5",
    "keepalives_count": "3",
}
# Parameters of asyncpg's DSN that libpq knows. All others are settings of the server.
KNOWN = frozenset(
    {
        "application_name",
        "client_encoding",
        "dbname",
        "gsslib",
        "host",
        "krbsrvname",
        "options",
        "passfile",
        "password",
        "port",
        "service",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
        "sslcert",
        "sslcrl",
        "sslkey",
        "sslmode",
        "sslnegotiation",
        "sslpassword",
        "sslrootcert",
        "target_session_attrs",
        "user",
    }
)
# libpq's own minimum.
MIN_TIMEOUT_SECONDS = 2


def connection_parameters(dsn: str, *, timeout_seconds: float) -> dict[str, str]:
    """Return libpq's parameters for one of :attr:`PostgresDatabase.dsns`.

    Args:
        dsn: A DSN of asyncpg.
        timeout_seconds: The time limit for each of its hosts; it is raised to 2, libpq's minimum.
    """
    parts = urlsplit(dsn)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if "database" in query:
        query["dbname"] = query.pop("database")
    settings = {name: query.pop(name) for name in sorted(query.keys() - KNOWN)}
    parameters = KEEPALIVES | _address(parts.netloc, unquote(parts.path.lstrip("/"))) | query
    options = [query.get("options", ""), *(_option(*setting) for setting in settings.items())]
    parameters["options"] = " ".join(filter(None, options))
    seconds = max(MIN_TIMEOUT_SECONDS, math.ceil(timeout_seconds))
    parameters["connect_timeout"] = str(seconds)
    return {name: value for name, value in parameters.items() if value}


def _address(netloc: str, database: str) -> dict[str, str]:
    credentials, _, addresses = netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    hosts, ports = [], []
    for address in addresses.split(","):
        host, colon, port = address.rpartition(":")
        if not colon or address.endswith("]"):
            host, port = address, ""
        hosts.append(unquote(host).strip("[]"))
        ports.append(port)
    return {
        "user": unquote(user),
        "password": unquote(password),
        "host": ",".join(hosts),
        "port": ",".join(ports) if any(ports) else "",
        "dbname": database,
    }


def _option(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace(" ", "\\ ")
    return f"-c {name}={escaped}"


def dsns_of(parts: SplitResult, parameters: list[tuple[str, str]]) -> tuple[str, ...]:
    """Return a DSN for each host that a URL names.

    asyncpg can try several hosts of one DSN itself, but with one time limit for all of them.
    """
    values = {unquote_plus(name): unquote_plus(value) for name, value in parameters}
    users, at, netloc = parts.netloc.rpartition("@")
    hosts = (netloc or values.get("host", "")).split(",")
    ports = values.get("port", "").split(",")
    if values.get("target_session_attrs") == "prefer-standby" or len(ports) not in {1, len(hosts)}:
        hosts = [",".join(hosts)]
    dsns = []
    for number, host in enumerate(hosts):
        own = dict(parameters)
        if len(ports) == len(hosts):
            own |= {"port": ports[number]} if ports[number] else {}
        if not netloc and host:
            own["host"] = quote(host, safe="")
        dsns.append(
            urlunsplit(
                parts._replace(
                    netloc=f"{users}{at}{host if netloc else ''}",
                    query="&".join(f"{name}={value}" for name, value in own.items()),
                )
            )
        )
    return tuple(dsns)
