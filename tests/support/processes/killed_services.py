"""Services in processes of their own that note which places they reach, and die at one of them.

The programs are in ``tests/crash``, and have a ``support.processes.kill_points.KillPoints``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, nullcontext, suppress
from pathlib import Path

from support.paths import CRASH_PROGRAMS, TESTS
from support.processes.asgi_servers import importing_from
from support.processes.server import Server

__all__ = ["NewURL", "places_of", "served"]

# Gives the URL of a database that does not exist yet, each time another one; takes a folder.
NewURL = Callable[[Path], str]


@asynccontextmanager
async def served(
    folder: Path,
    program: str,
    url: str,
    kill_at: str = "",
    *,
    may_die: bool = False,
    arguments: Sequence[str] = (),
    **environment: str,
) -> AsyncIterator[Server]:
    """Serve until the end of the block or a kill.

    Args:
        folder: A new one, for what the process leaves.
        program: A module of ``tests/crash`` that has an ``app``.
        url: The database.
        kill_at: The place to die at; none if it is empty.
        may_die: True if that may come before it serves.
        arguments: More arguments of uvicorn.
        environment: More variables.
    """
    await asyncio.to_thread(folder.mkdir)
    environment |= {
        "ASGI_DURABLE_URL": url,
        "KILL_POINT_LEDGER": str(_ledger(folder)),
        "KILL_AT": kill_at,
    }
    server = Server(
        folder,
        f"{program}:app",
        app_dir=CRASH_PROGRAMS,
        environment=importing_from(TESTS) | environment,
        arguments=arguments,
    )
    with ExitStack() as stack:
        stack.push(server)
        with suppress(AssertionError) if may_die else nullcontext():
            await asyncio.to_thread(server.start)
        yield server


def places_of(folder: Path) -> list[str]:
    """Return which places a process has reached, in this order."""
    ledger = _ledger(folder)
    return ledger.read_text().splitlines() if ledger.exists() else []


def _ledger(folder: Path) -> Path:
    return folder / "ledger"
