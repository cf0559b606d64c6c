"""A Postgres server that follows another one, and can take its place."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from urllib.parse import urlsplit

import asyncpg

from support.databases.postgres import PostgresServer, circumstances, fetch

POLL_SECONDS = 0.02
TIMEOUT_SECONDS = 60.0
IS_SYNCHRONOUS = "SELECT EXISTS (SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync')"


class StandbyServer(PostgresServer):
    """A copy of a running server that gets all that this one commits.

    Args:
        primary: The server that it follows until it is promoted.
    """

    def __init__(self, primary: PostgresServer) -> None:
        super().__init__(settings={"hot_standby": "on"})
        self._primary = primary

    async def become_synchronous(self) -> None:
        """Let the primary acknowledge nothing from now on that is not here as well."""
        connection = await asyncpg.connect(self._primary.url)
        try:
            await connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            await connection.execute("SELECT pg_reload_conf()")
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while not await connection.fetchval(IS_SYNCHRONOUS):
                    await asyncio.sleep(POLL_SECONDS)
        finally:
            await connection.close()

    async def promote(self) -> None:
        """Become a primary; return once it takes writes."""
        assert (await fetch(self.url, "SELECT pg_promote()"))[0][0], "it was not promoted"

    def url_of_both(self) -> str:
        """The URL that reaches the one of the two servers that accepts writes."""
        hosts = [urlsplit(server.url).netloc for server in (self._primary, self)]
        user, _, _ = hosts[0].rpartition("@")
        netloc = ",".join(host.rpartition("@")[2] for host in hosts)
        return f"postgresql://{user}@{netloc}/postgres?target_session_attrs=read-write"

    def _create(self) -> None:
        super()._create()
        folder = self._opened_folder / "data"
        shutil.rmtree(folder)
        command = [self._binaries / "pg_basebackup", "-d", self._primary.url, "-D", folder]
        result = subprocess.run(
            [*command, "--write-recovery-conf", "--checkpoint=fast", "--no-sync"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **circumstances(),
        )
        assert result.returncode == 0, f"pg_basebackup failed:\n{result.stderr}"
