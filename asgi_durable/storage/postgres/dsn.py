"""The hosts of a URL, one by one."""

from __future__ import annotations

from urllib.parse import SplitResult, quote, unquote_plus, urlunsplit

__all__ = ["dsns_of"]


def dsns_of(parts: SplitResult, parameters: list[tuple[str, str]]) -> tuple[str, ...]:
    """Return a DSN for each host that a URL names.

    asyncpg goes through them by itself, but has one limit of time for all.
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
