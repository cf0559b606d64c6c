"""A PgBouncer in transaction mode: every transaction may be on another server connection."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import SplitResult, unquote, urlsplit

import asyncpg

from support.databases.postgres import circumstances, free_port, new_folder

# Set by the nox session `pgbouncer`: the fixtures' Postgres URLs lead through a pooler then.
IS_USED = bool(os.environ.get("ASGI_DURABLE_TEST_PGBOUNCER"))
# Fewer than the connections that two storages have: they do share them.
POOL_SIZE = 5
START_TIMEOUT_SECONDS = 30.0
STOP_TIMEOUT_SECONDS = 30.0
POLL_SECONDS = 0.01
# The database that takes commands.
CONSOLE = "pgbouncer"
NO_PGBOUNCER = (
    "These tests need PgBouncer and found none: install the package pgbouncer "
    "(`apt-get install pgbouncer`); nothing has to be set up or started."
)
# Runs until the tests close its input or have ended, and removes all its files.
RUN = """
"$0" "$1/pgbouncer.ini" >"$1/log" 2>&1 &
cat
kill -KILL $!
wait
rm -rf "$1"
"""
SETTINGS = """
listen_addr = 127.0.0.1
unix_socket_dir =
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 1000
auth_type = trust
auth_file = {folder}/users
auth_user = {user}
admin_users = {user}
; A server that was restarted is looked for again at once.
server_login_retry = 0.1
"""


class PgBouncer:
    """A pooler before a Postgres server, for use as a context manager.

    Args:
        server_url: Of a superuser: other users are looked up with it.
        pool_size: How many server connections a user has in one database at most.
    """

    def __init__(self, server_url: str, *, pool_size: int = POOL_SIZE) -> None:
        self.port = free_port()
        self._server = urlsplit(server_url)
        self._pool_size = pool_size
        self._databases: dict[str, str] = {}
        self._folder = Path()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """The lines that the pooler has printed so far."""
        return (self._folder / "log").read_text(errors="replace")

    @contextmanager
    def database(self, schema: str, *, settings: str = "") -> Iterator[str]:
        """Return the URL of a database under a name of its own; its search path is a schema.

        A client cannot set its own options on connections that it shares, so the pooler sets
        them when it opens a connection.

        Args:
            schema: The schema of the library's tables and the application's.
            settings: More SQL for new server connections.
        """
        query = f"SET search_path TO {schema}; {settings}"
        self._databases[schema] = query.replace("'", "''")
        self._reload()
        try:
            yield f"{self._url_of(schema)}?schema={schema}&prepared_statements=false"
        finally:
            del self._databases[schema]
            self._reload()

    def __enter__(self) -> Self:
        """Start, and wait until it takes connections."""
        self._folder = folder = new_folder()
        self._write("users", f'"{self._user}" "{unquote(self._server.password or "")}"\n')
        self._write_settings()
        self._process = subprocess.Popen(
            ["sh", "-c", RUN, find_pgbouncer(), folder],
            stdin=subprocess.PIPE,
            # Ctrl-C is for the tests, which stop the pooler when they are through.
            start_new_session=True,
            **circumstances(),
        )
        give_up_at = time.monotonic() + START_TIMEOUT_SECONDS
        while not self._accepts():
            if time.monotonic() > give_up_at:
                message = f"PgBouncer does not start:\n{self.log}"
                self._stop()
                raise AssertionError(message)
            time.sleep(POLL_SECONDS)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it, and delete all that it had."""
        self._stop()

    @property
    def _user(self) -> str:
        return unquote(self._server.username or "postgres")

    def _url_of(self, database: str) -> str:
        users = self._server.netloc.rpartition("@")[0] or self._user
        parts = SplitResult("postgresql", f"{users}@127.0.0.1:{self.port}", database, "", "")
        return parts.geturl()

    def _write_settings(self) -> None:
        server = self._server
        where = (
            f"host={server.hostname or '127.0.0.1'} port={server.port or 5432} "
            f"dbname={unquote(server.path.lstrip('/')) or self._user}"
        )
        databases = [
            f"{name} = {where} connect_query='{query}'\n" for name, query in self._databases.items()
        ]
        settings = SETTINGS.format(folder=self._folder, pool_size=self._pool_size, user=self._user)
        self._write(
            "pgbouncer.ini",
            f"[databases]\n{''.join(databases)}[pgbouncer]\nlisten_port = {self.port}\n{settings}",
        )

    def _write(self, name: str, text: str) -> None:
        (self._folder / name).write_text(text)

    def _reload(self) -> None:
        self._write_settings()
        asyncio.run(self._command("RELOAD"))

    async def _command(self, command: str) -> None:
        connection = await asyncpg.connect(self._url_of(CONSOLE), timeout=START_TIMEOUT_SECONDS)
        try:
            await connection.execute(command)
        finally:
            await connection.close()

    def _stop(self) -> None:
        assert self._process is not None
        self._process.communicate(timeout=STOP_TIMEOUT_SECONDS)

    def _accepts(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
        except OSError:
            return False
        return True


def find_pgbouncer() -> str:
    """Return the program, which Debian keeps where only root looks for programs."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    program = shutil.which("pgbouncer", path=path)
    assert program is not None, NO_PGBOUNCER
    return program


def _doubled(text: str) -> str:
    return text.replace("'", "''")
