"""The URL of a PostgreSQL database, and connections to it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, quote, unquote, unquote_plus, urlsplit

import asyncpg

from asgi_durable.errors import DurableUsageError, StorageError, StorageUnavailableError
from asgi_durable.storage.postgres.connections.conninfo import dsns_of
from asgi_durable.storage.postgres.connections.sockets import enable_keepalive
from asgi_durable.storage.postgres.errors import DRIVER_ERRORS, storage_error
from asgi_durable.storage.urls import without_driver

__all__ = ["PostgresDatabase"]

ValueT = TypeVar("ValueT")

SCHEMA = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
PORTS = re.compile(r"(\[[^\]]+\]|[^:\[\]]*)(:\d+)?")
SWITCH = {"true": True, "false": False}
FEATURES: dict[str, bool | None] = {"auto": None, "on": True, "off": False}
# Parameters of libpq that asyncpg does not know. It would pass them to the server, which would
# refuse the connection.
LIBPQ_ONLY = frozenset(
    {
        "channel_binding",
        "fallback_application_name",
        "gssdelegation",
        "gssencmode",
        "hostaddr",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "load_balance_hosts",
        "passcommand",
        "require_auth",
        "requirepeer",
        "requiressl",
        "sslcertmode",
        "sslcompression",
        "sslcrldir",
        "sslsni",
        "tcp_user_timeout",
    }
)
# Parameters of SQLAlchemy's drivers, and the parameters to use here instead.
OF_SQLALCHEMY = {
    "max_overflow": "pool_size=, which is a limit",
    "prepared_statement_cache_size": "prepared_statements=false",
    "ssl": "sslmode=",
    "statement_cache_size": "prepared_statements=false",
}
# PostgreSQL truncates longer names, and replaces characters that are not ASCII.
APPLICATION_NAME = re.compile(r"[ -~]{1,63}")
DEFAULT_APPLICATION_NAME = "asgi-durable"
FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
SECRETS = frozenset({"password", "sslpassword"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresDatabase:
    """A PostgreSQL database, and the settings for connections to it.

    Attributes:
        name: Its hosts and its name, for messages; never a user or a password.
        schema: The schema of the tables.
        prepared_statements: False behind a pooler in transaction mode that does not support them.
        session_features: True if a connection is a session on the server, as advisory locks and
            LISTEN need it; ``None`` to detect it.
        connect_timeout_seconds: The time limit for a new connection, all hosts together.
        command_timeout_seconds: The time limit for one of the library's own statements.
        pool_size: The largest number of connections for the application's transactions, counted
            separately for ``async`` and ``def`` code; ``None`` for SQLAlchemy's limit, 15.
        dsns: A DSN of asyncpg for each host.
        files: Names and values of the parameters that name a file.
        secrets: Passwords, which are removed from error messages.
    """

    name: str
    schema: str
    prepared_statements: bool
    session_features: bool | None
    connect_timeout_seconds: float
    command_timeout_seconds: float
    pool_size: int | None
    dsns: tuple[str, ...] = field(repr=False)
    files: tuple[tuple[str, str], ...] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)

    @classmethod
    def from_url(cls, url: str) -> PostgresDatabase:
        """Read a URL such as ``postgresql://user:password@host:5432/database``.

        All parameters of asyncpg's DSN work: several hosts, ``target_session_attrs``,
        ``sslmode`` and its files, ``passfile``, ``service``, ``host=/folder`` of a Unix socket.
        Parameters that asyncpg does not know are settings of the server, for example
        ``statement_timeout``. asgi-durable has these of its own:

        ``schema``: the schema of its tables, ``asgi_durable`` by default.
        ``prepared_statements``: ``true`` by default; ``false`` for PgBouncer before 1.21 in
        transaction mode. ``session_features``: ``auto`` by default, ``on`` or ``off``.
        ``connect_timeout`` and ``command_timeout``: seconds, 10 by default. ``pool_size``: see
        the attribute. ``application_name``: the name that the server shows for the connections,
        ``asgi-durable`` by default.

        Raises:
            DurableUsageError: The URL cannot be read, or a parameter has an invalid value.
        """
        parts = _split(url)
        parameters = [item.partition("=") for item in parts.query.split("&") if item]
        values = {
            unquote_plus(name): _absolute(unquote_plus(name), unquote_plus(value))
            for name, _, value in parameters
        }
        own = _OwnParameters(values)
        if unknown := sorted(values.keys() & LIBPQ_ONLY):
            msg = f"asyncpg has no parameter {unknown[0]!r}: take it out of the URL"
            raise DurableUsageError(msg)
        if foreign := sorted(values.keys() & OF_SQLALCHEMY.keys()):
            msg = f"{foreign[0]!r} is a parameter of SQLAlchemy's: use {OF_SQLALCHEMY[foreign[0]]}"
            raise DurableUsageError(msg)
        passed_on = [
            (name, quote(values[unquote_plus(name)], safe="") if _is_file(name) else value)
            for name, _, value in parameters
            if unquote_plus(name) not in own.read
        ]
        if own.application_name is not None:
            passed_on.append(("application_name", quote(own.application_name, safe="")))
        password = parts.netloc.rpartition("@")[0].partition(":")[2]
        files = [(name, values[name]) for name in FILES if values.get(name)]
        secrets = {password, unquote(password), *(values.get(name, "") for name in SECRETS)}
        return cls(
            name=_name(parts, values),
            schema=own.schema,
            prepared_statements=own.prepared_statements,
            session_features=own.session_features,
            connect_timeout_seconds=own.connect_timeout,
            command_timeout_seconds=own.command_timeout,
            pool_size=own.pool_size,
            dsns=dsns_of(parts, passed_on),
            files=tuple(files),
            # The longest is replaced first, as one secret may be a part of another.
            secrets=tuple(sorted(secrets - {""}, key=len, reverse=True)),
        )

    @property
    def pool_options(self) -> dict[str, int]:
        """SQLAlchemy's options of a pool for the application's transactions."""
        return {} if self.pool_size is None else {"pool_size": self.pool_size, "max_overflow": 0}

    async def connect(self, *, command_timeout_seconds: float | None = None) -> asyncpg.Connection:
        """Connect on the running event loop.

        Args:
            command_timeout_seconds: The time limit for each statement; no limit by default.

        Raises:
            StorageUnavailableError: The database cannot be reached now.
            StorageError: It cannot be used with this URL.
        """
        *others, last = self.dsns
        for dsn in others:
            with contextlib.suppress(StorageUnavailableError):
                return await self._connect_to(dsn, command_timeout_seconds)
        return await self._connect_to(last, command_timeout_seconds)

    async def _connect_to(
        self, dsn: str, command_timeout_seconds: float | None
    ) -> asyncpg.Connection:
        try:
            connection = await asyncpg.connect(
                dsn,
                # Each host has a share of the time limit. One that does not respond, for example
                # because it is switched off, must not use up the whole of it.
                timeout=self.connect_timeout_seconds / len(self.dsns),
                command_timeout=command_timeout_seconds,
                statement_cache_size=100 if self.prepared_statements else 0,
                # Plans are made for the tables as they are, so each is renewed after a minute.
                max_cached_statement_lifetime=60,
            )
        except ValueError as error:
            # The text may contain any part of the URL. So may the error, which is not chained.
            msg = f"{self.name}: {self._without_secrets(str(error))}"
            raise StorageError(msg) from None
        except (OSError, *DRIVER_ERRORS) as error:
            self._refuse_unreadable_files(error)
            raise storage_error(error, self.name) or StorageError(
                f"{self.name}: {error}"
            ) from error
        enable_keepalive(connection)
        return connection

    def _refuse_unreadable_files(self, error: Exception) -> None:
        for name, path in self.files:
            try:
                Path(path).open("rb").close()
            except OSError as reason:
                msg = f"{self.name}: {name} {path!r} cannot be read: {reason.strerror}"
                raise StorageError(msg) from error

    def _without_secrets(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


class _OwnParameters:
    """The parameters of a URL that belong to asgi-durable and not to asyncpg."""

    def __init__(self, values: dict[str, str]) -> None:
        self._values = values
        self.read: set[str] = set()
        self.schema = self._get("schema", "asgi_durable", _schema, "a plain name")
        self.prepared_statements = self._get(
            "prepared_statements", "true", SWITCH.__getitem__, "true or false"
        )
        self.session_features = self._get(
            "session_features", "auto", FEATURES.__getitem__, "auto, on or off"
        )
        self.connect_timeout = self._get("connect_timeout", "10", _seconds, "seconds above 0")
        self.command_timeout = self._get("command_timeout", "10", _seconds, "seconds above 0")
        self.pool_size = self._get("pool_size", None, _pool_size, "a whole number from 1 to 10000")
        self.application_name = self._get(
            "application_name",
            _default_application_name(values),
            _application_name,
            "1 to 63 printable ASCII characters",
        )

    def _get(
        self, name: str, default: str | None, parse: Callable[[Any], ValueT], expected: str
    ) -> ValueT:
        self.read.add(name)
        text = self._values.get(name, default)
        try:
            return parse(text)
        except (ValueError, KeyError):
            msg = f"{name} must be {expected}, got {text!r}"
            raise DurableUsageError(msg) from None


def _schema(text: str) -> str:
    if not SCHEMA.fullmatch(text) or text.lower().startswith("pg_"):
        raise ValueError
    return text


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError
    return seconds


def _is_file(name: str) -> bool:
    return name in FILES or name == "passfile"


def _absolute(name: str, value: str) -> str:
    """Return a parameter's value; a file's path absolute, as the working directory may change."""
    return str(Path(value).absolute()) if value and _is_file(name) else value


def _pool_size(text: str | None) -> int | None:
    if text is None:
        return None
    # `int` alone accepts "1_0" and "٣" as well.
    if not re.fullmatch(r"[1-9][0-9]{0,3}|10000", text):
        raise ValueError
    return int(text)


def _default_application_name(values: dict[str, str]) -> str | None:
    """Return the default name, ``None`` if the file of a service may have one."""
    if "service" in values or os.environ.get("PGSERVICE"):
        return None
    # asyncpg does not read this variable of libpq.
    return os.environ.get("PGAPPNAME") or DEFAULT_APPLICATION_NAME


def _application_name(text: str | None) -> str | None:
    if text is not None and not APPLICATION_NAME.fullmatch(text):
        raise ValueError
    return text


def _split(url: str) -> SplitResult:
    """Split a URL; refuse one whose password is not encoded.

    Such a URL would be misread, and parts of its password would appear in messages.
    """
    parts = urlsplit(without_driver(url))
    hosts = parts.netloc.rpartition("@")[2]
    ports_fit = all(PORTS.fullmatch(host) for host in hosts.split(","))
    misread = "@" in parts.path + parts.fragment or parts.netloc.count("@") > 1 or not ports_fit
    if misread or parts.fragment or any("=" not in i for i in parts.query.split("&") if i):
        msg = (
            "the database's URL cannot be read: each of @ : / ? # % in its user name or "
            "password must be percent-encoded, and a port must be a number"
        )
        raise DurableUsageError(msg)
    return parts


def _name(parts: SplitResult, values: dict[str, str]) -> str:
    hosts = unquote(parts.netloc.rpartition("@")[2]) or values.get("host")
    database = unquote(parts.path.lstrip("/")) or values.get("dbname") or values.get("database")
    hosts = hosts or os.environ.get("PGHOST") or "localhost"
    return f"{hosts}/{database or os.environ.get('PGDATABASE') or ''}"
