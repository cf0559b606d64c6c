"""Settings of connections in a Postgres URL: all connections have them, also the application's."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import socket
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from support.databases.postgres import PostgresServer, circumstances, fetch, new_folder
from support.databases.standby import StandbyServer

from asgi_durable import Durable, StorageError, StorageUnavailableError
from asgi_durable.storage.postgres.connections.database import PostgresDatabase

pytestmark = pytest.mark.anyio

NewDurable = Callable[[str], Durable]

PASSWORD = "hush-3f9c61d2b07e"
WRONG_PASSWORD = "loud-91b0c2e4d7a5"
ROLES = ("anybody", "encrypted", "certified", "secret")
# The server's access rules. `all` does not include the replication that standbys need.
ACCESS = """
local all anybody trust
host all,replication postgres 127.0.0.1/32 trust
host all anybody 127.0.0.1/32 trust
hostssl all encrypted 127.0.0.1/32 trust
hostssl all certified 127.0.0.1/32 cert
host all secret 127.0.0.1/32 scram-sha-256
"""
CLOSED_PORT = 1
NO_OPENSSL = "These tests make certificates: install the program openssl."


@pytest.fixture(autouse=True)
def _nothing_of_the_machine_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove the user's variables and files that contain connection settings."""
    for name in [name for name in os.environ if name.startswith("PG") and name != "PG_BINDIR"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """The server's certificates and socket, and a CA of the same name that is not the server's."""
    folder = new_folder()
    issue("/CN=Authority", "authority", folder)
    issue("/CN=Authority", "impostor", folder)
    # For the name only: it is not valid for the address 127.0.0.1.
    name = ("-addext", "subjectAltName=DNS:localhost")
    issue("/CN=localhost", "server", folder, *signed_by("authority"), *name)
    issue("/CN=certified", "client", folder, *signed_by("authority"))
    (folder / "access").write_text(ACCESS)
    yield folder
    shutil.rmtree(folder)


def signed_by(authority: str) -> tuple[str, ...]:
    keys = ("-CA", f"{authority}.crt", "-CAkey", f"{authority}.key")
    return (*keys, "-addext", "basicConstraints=critical,CA:FALSE")


def issue(subject: str, name: str, folder: Path, *options: str) -> None:
    """Make a certificate and its key, as the user that the server runs as."""
    openssl = shutil.which("openssl")
    assert openssl is not None, NO_OPENSSL
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    files = ["-keyout", f"{name}.key", "-out", f"{name}.crt"]
    result = subprocess.run(
        [*command, "-nodes", "-days", "2", "-subj", subject, *files, *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        **circumstances() | {"cwd": folder},
    )
    assert result.returncode == 0, f"openssl failed:\n{result.stderr}"
    (folder / f"{name}.key").chmod(0o600)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[PostgresServer]:
    """A server with certificates, a socket, and a role for each method of authentication."""
    settings = {
        "hba_file": f"{folder}/access",
        "unix_socket_directories": str(folder),
        "ssl": "on",
        "ssl_cert_file": f"{folder}/server.crt",
        "ssl_key_file": f"{folder}/server.key",
        "ssl_ca_file": f"{folder}/authority.crt",
    }
    with PostgresServer(settings=settings) as server:
        for role in ROLES:
            create = f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{PASSWORD}'"
            asyncio.run(fetch(server.url, create))
        yield server


@pytest.fixture(params=["step log", "application"])
def new_durable(request: pytest.FixtureRequest, sqlite_url: str) -> NewDurable:
    """Make instances whose step log, or only whose application's data, is in a URL's database."""
    if request.param == "step log":
        return lambda url: Durable(url, drain_timeout=0.0)
    return lambda url: Durable(sqlite_url, application_url=url, drain_timeout=0.0)


async def read(durable: Durable, query: str) -> list[object]:
    """Start, and return the values of one column, read in a transaction of a workflow."""

    @durable.transaction
    async def select() -> list[object]:
        return list((await durable.session.execute(sa.text(query))).scalars())

    @durable.workflow
    async def work() -> list[object]:
        return await select()

    async with durable:
        return await work()


async def refusal(durable: Durable) -> StorageError:
    """Fail to start; return the error, which must not be a temporary one."""
    with pytest.raises(StorageError) as caught:
        async with durable:
            pass
    assert not isinstance(caught.value, StorageUnavailableError)
    return caught.value


# TLS


@pytest.mark.parametrize(
    ("parameters", "are_encrypted"),
    [
        ("sslmode=disable", False),
        ("sslmode=prefer", True),
        ("sslmode=require", True),
        ("sslmode=verify-ca&sslrootcert={folder}/authority.crt", True),
        ("sslmode=verify-full&sslrootcert={folder}/authority.crt", True),
    ],
)
async def test_all_connections_are_encrypted_as_the_url_says(
    server: PostgresServer,
    folder: Path,
    new_durable: NewDurable,
    parameters: str,
    are_encrypted: bool,
) -> None:
    query = f"application_name=encrypted&{parameters.format(folder=folder)}"
    durable = new_durable(f"postgresql://anybody@localhost:{server.port}/postgres?{query}")

    found = await read(
        durable,
        "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) "
        "WHERE application_name = current_setting('application_name')",
    )

    assert found == [are_encrypted]


async def test_a_certificate_proves_who_the_application_is(
    server: PostgresServer, folder: Path, new_durable: NewDurable
) -> None:
    files = f"sslcert={folder}/client.crt&sslkey={folder}/client.key"
    durable = new_durable(f"postgresql://certified@localhost:{server.port}/postgres?{files}")

    assert await read(durable, "SELECT current_user") == ["certified"]


# The driver closes an encrypted connection that is refused without waiting for the server's
# closing message, which the end of the storage's event loop may cut off.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("authority", "parameters", "reason"),
    [
        ("encrypted@localhost", "sslmode=disable", "no encryption"),
        (
            "encrypted@localhost",
            "sslmode=verify-ca&sslrootcert={folder}/impostor.crt",
            "certificate verify failed",
        ),
        (
            "encrypted@127.0.0.1",
            "sslmode=verify-full&sslrootcert={folder}/authority.crt",
            "not valid for '127.0.0.1'",
        ),
        ("encrypted@localhost", "sslmode=verify-full", "root certificate file"),
        ("certified@localhost", "sslmode=require", "client certificate"),
    ],
    ids=["plain", "another authority", "another host", "no authority", "no certificate"],
)
async def test_a_connection_that_is_not_safe_is_refused_for_good(
    server: PostgresServer,
    folder: Path,
    new_durable: NewDurable,
    authority: str,
    parameters: str,
    reason: str,
) -> None:
    query = parameters.format(folder=folder)

    error = await refusal(new_durable(f"postgresql://{authority}:{server.port}/postgres?{query}"))

    assert reason in str(error)
    assert f"{authority.partition('@')[2]}:{server.port}/postgres" in str(error)
    # Warnings must appear here, and not in the next test.
    del error
    gc.collect()


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ("sslmode=verify-full&sslrootcert={folder}/missing.crt", "missing.crt' cannot be read"),
        ("sslmode=require&sslcert={folder}/missing.crt", "missing.crt' cannot be read"),
        ("sslmode=verify-full&sslrootcert={folder}/access", "NO_CERTIFICATE_OR_CRL_FOUND"),
        ("sslcert={folder}/client.crt&sslkey={folder}/server.key", "KEY_VALUES_MISMATCH"),
    ],
)
async def test_a_file_that_is_no_certificate_is_a_mistake(
    server: PostgresServer, folder: Path, new_durable: NewDurable, parameters: str, reason: str
) -> None:
    query = parameters.format(folder=folder)

    error = await refusal(
        new_durable(f"postgresql://anybody@localhost:{server.port}/postgres?{query}")
    )

    assert reason in str(error)


# Sockets


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:///postgres?host={folder}&port={port}&user=anybody",
        "postgresql://anybody@/postgres?host={folder}&port={port}",
        "postgresql://anybody@{quoted_folder}:{port}/postgres?sslmode=require",
    ],
)
async def test_all_connections_go_through_the_socket_of_a_folder(
    server: PostgresServer, folder: Path, new_durable: NewDurable, url: str
) -> None:
    quoted_folder = quote(str(folder), safe="")
    url = url.format(folder=folder, quoted_folder=quoted_folder, port=server.port)
    durable = new_durable(f"{url}{'&' if '?' in url else '?'}application_name=local")

    found = await read(
        durable,
        "SELECT DISTINCT client_addr IS NULL FROM pg_stat_activity "
        "WHERE application_name = current_setting('application_name')",
    )

    assert found == [True]


# Passwords

WAYS = ["URL", "parameter", "passfile", "PGPASSFILE", "PGPASSWORD"]


@pytest.fixture
def url_with(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], str]:
    """Return a URL for ``secret``, and put the password where the URL, or the driver, finds it."""
    base = f"localhost:{server.port}/postgres"

    def url_with(way: str, password: str) -> str:
        passfile = tmp_path / "passfile"
        passfile.write_text(f"localhost:{server.port}:postgres:secret:{password}\n")
        passfile.chmod(0o600)
        if way.startswith("PG"):
            monkeypatch.setenv(way, password if way == "PGPASSWORD" else str(passfile))
        return {
            "URL": f"postgresql://secret:{password}@{base}",
            "parameter": f"postgresql://secret@{base}?password={password}",
            "passfile": f"postgresql://secret@{base}?passfile={passfile}",
        }.get(way, f"postgresql://secret@{base}")

    return url_with


@pytest.mark.parametrize("way", WAYS)
async def test_a_password_is_found_where_it_is(
    new_durable: NewDurable, url_with: Callable[[str, str], str], way: str
) -> None:
    durable = new_durable(url_with(way, PASSWORD))

    assert await read(durable, "SELECT current_user") == ["secret"]


@pytest.mark.parametrize("way", WAYS)
async def test_a_wrong_password_is_refused_and_not_shown(
    new_durable: NewDurable, url_with: Callable[[str, str], str], way: str
) -> None:
    error = await refusal(new_durable(url_with(way, WRONG_PASSWORD)))

    assert 'password authentication failed for user "secret"' in str(error)
    assert WRONG_PASSWORD not in "".join(traceback.format_exception(error))


async def test_a_password_that_is_nowhere_is_missed(
    server: PostgresServer, new_durable: NewDurable
) -> None:
    error = await refusal(new_durable(server.url_of("secret")))

    assert 'password authentication failed for user "secret"' in str(error)


# Several hosts


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://anybody@127.0.0.1:{closed},127.0.0.1:{port}/postgres",
        "postgresql:///postgres?user=anybody&host=127.0.0.1,127.0.0.1&port={closed},{port}",
    ],
)
async def test_a_host_that_is_down_is_passed_over(
    server: PostgresServer, new_durable: NewDurable, url: str
) -> None:
    durable = new_durable(url.format(closed=CLOSED_PORT, port=server.port))

    assert await read(durable, "SELECT inet_server_port()") == [server.port]


@pytest.fixture(scope="module")
def standby(server: PostgresServer) -> Iterator[StandbyServer]:
    """A server that refuses writes."""
    with StandbyServer(server) as standby:
        yield standby


async def test_a_standby_is_passed_over_where_writes_are_asked_for(
    server: PostgresServer, standby: StandbyServer, new_durable: NewDurable
) -> None:
    hosts = f"127.0.0.1:{standby.port},127.0.0.1:{server.port}"
    durable = new_durable(f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write")

    assert await read(durable, "SELECT inet_server_port()") == [server.port]


async def test_a_standby_alone_may_take_writes_later(
    standby: StandbyServer, new_durable: NewDurable
) -> None:
    with pytest.raises(StorageUnavailableError, match="read-write"):
        async with new_durable(f"{standby.url}?target_session_attrs=read-write"):
            pass


# Silence


async def test_a_host_that_says_nothing_is_given_up(new_durable: NewDurable) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://anybody@127.0.0.1:{silent.getsockname()[1]}/postgres"

        with pytest.raises(StorageUnavailableError, match=r"127\.0\.0\.1.*TimeoutError"):
            async with new_durable(f"{url}?connect_timeout=0.1"):
                pass


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://anybody@127.0.0.1:{silent},127.0.0.1:{port}/postgres?",
        "postgresql:///postgres?user=anybody&host=127.0.0.1,127.0.0.1&port={silent},{port}&",
    ],
)
async def test_a_host_that_says_nothing_is_passed_over(server: PostgresServer, url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = url.format(silent=silent.getsockname()[1], port=server.port)
        connection = await PostgresDatabase.from_url(f"{url}connect_timeout=2").connect()
        try:
            assert await connection.fetchval("SELECT inet_server_port()") == server.port
        finally:
            await connection.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="another system's name for it")
@pytest.mark.parametrize("parameters", ["sslmode=disable", "sslmode=require"])
async def test_the_system_ends_a_connection_whose_other_end_is_silent(
    server: PostgresServer, parameters: str
) -> None:
    url = f"postgresql://anybody@localhost:{server.port}/postgres?{parameters}"
    connection = await PostgresDatabase.from_url(url).connect()
    try:
        end = connection._transport.get_extra_info("socket")
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        # A server that waits for a lock does not read; its connection must not be closed for that.
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 15
    finally:
        await connection.close()
