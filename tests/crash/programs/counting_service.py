"""A service whose steps and effects can be counted; served by the processes that tests kill.

Environment:
    ASGI_DURABLE_URL: The database.
    COUNTING_FOLDER: The folder with the ledger, shared by all processes, and with the gate.
    COUNTING_SETTINGS: More arguments of ``Durable``, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from asgi_durable import Durable, IdempotencyPolicy

FOLDER = Path(os.environ["COUNTING_FOLDER"])
POLL_SECONDS = 0.01
SECONDS_TO_DEATH = 0.2
MAX_RECOVERY_ATTEMPTS = 2

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(message)s")

# Its processes are called by their ports, and are one service.
durable = Durable(
    idempotency=IdempotencyPolicy(authority="service.example"),
    **json.loads(os.environ.get("COUNTING_SETTINGS", "{}")),
)


def note() -> None:
    """Write a line that says which step begins, where and when."""
    line = f"{time.time()} {durable.workflow_id} {durable.step_id} {os.getpid()}\n"
    with (FOLDER / "ledger").open("a") as ledger:
        ledger.write(line)


@durable.step
async def pause(seconds: float) -> int:
    """Take some time; return which process did."""
    note()
    await asyncio.sleep(seconds)
    return os.getpid()


@durable.step
async def pass_gate() -> int:
    """Wait until the test opens the gate."""
    note()
    while not (FOLDER / "gate").exists():
        await asyncio.sleep(POLL_SECONDS)
    return os.getpid()


@durable.step
async def block(seconds: float) -> int:
    """Block the event loop."""
    note()
    time.sleep(seconds)  # noqa: ASYNC251  that is the fault
    return os.getpid()


@durable.step
async def die() -> None:
    """End the process, whatever else it does."""
    note()
    await asyncio.sleep(SECONDS_TO_DEATH)
    os._exit(9)


@durable.transaction
async def insert(name: str) -> int:
    """Insert a row; nothing but the library keeps it from being inserted twice."""
    note()
    await durable.session.execute(
        sa.text("INSERT INTO effects VALUES (:name, :pid)"), {"name": name, "pid": os.getpid()}
    )
    return os.getpid()


@durable.transaction
async def insert_behind_gate(name: str) -> int:
    """Insert a row and wait, in the middle of the transaction, until the gate is opened."""
    pid = await insert(name)
    while not (FOLDER / "gate").exists():
        await asyncio.sleep(POLL_SECONDS)
    return pid


async def take_pauses(name: str, seconds: list[float]) -> list[int]:
    """Do some steps and a transaction; return which process did each."""
    return [*[await pause(length) for length in seconds], await insert(name)]


@durable.workflow
async def work(name: str, seconds: list[float]) -> list[int]:
    """Do some steps and a transaction."""
    return await take_pauses(name, seconds)


@durable.workflow(max_recovery_attempts=MAX_RECOVERY_ATTEMPTS)
async def neighbour(name: str, seconds: list[float]) -> list[int]:
    """Do the same, as a workflow that is set aside after a few crashes."""
    return await take_pauses(name, seconds)


@durable.workflow(max_recovery_attempts=MAX_RECOVERY_ATTEMPTS)
async def poison(name: str) -> None:
    """End every process that runs it."""
    await die()


@durable.workflow
async def gated(name: str) -> list[int]:
    """Wait in the second step."""
    return [await pause(0.0), await pass_gate(), await insert(name)]


@durable.workflow
async def gated_in_transaction(name: str) -> list[int]:
    """Wait in a transaction."""
    return [await pause(0.0), await insert_behind_gate(name), await pause(0.0)]


@durable.workflow
async def blocking(name: str, seconds: float) -> list[int]:
    """Block the event loop in the second step."""
    return [await pause(0.0), await block(seconds), await insert(name)]


WORKFLOWS: dict[str, Any] = {
    function.__name__: function
    for function in (work, neighbour, poison, gated, gated_in_transaction, blocking)
}


async def start(request: Request) -> JSONResponse:
    """Start a workflow in the background, under its name."""
    function, arguments = await called(request)
    calls = durable.options(workflow_id=arguments["name"])
    await calls.start_workflow(function, *arguments.values())
    return JSONResponse({"pid": os.getpid()})


async def run(request: Request) -> JSONResponse:
    """Run a workflow, under its name, and wait for it."""
    function, arguments = await called(request)
    calls = durable.options(workflow_id=arguments["name"])
    return JSONResponse(await calls.run_workflow(function, *arguments.values()))


async def child(request: Request) -> JSONResponse:
    """Handle a keyed request by a workflow."""
    function, arguments = await called(request)
    return JSONResponse(await function(*arguments.values()))


async def steps(request: Request) -> JSONResponse:
    """Handle a keyed request by steps and a transaction of its own."""
    arguments = await request.json()
    return JSONResponse(await take_pauses(**arguments))


async def gate(request: Request) -> JSONResponse:
    """Handle a keyed request by a step that waits at the gate."""
    arguments = await request.json()
    return JSONResponse([await pass_gate(), await insert(arguments["name"])])


async def called(request: Request) -> tuple[Any, dict[str, Any]]:
    """Return which workflow is called with what."""
    return WORKFLOWS[request.path_params["workflow"]], await request.json()


async def plain(_: Request) -> JSONResponse:
    """Respond at once, without the database."""
    return JSONResponse({"pid": os.getpid()})


async def limit_files(request: Request) -> JSONResponse:
    """Set how long a file may become: for who writes, the disk is full beyond that."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = (await request.json())["bytes"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if limit is None else limit, hard))
    return JSONResponse({"pid": os.getpid()})


@durable.transaction
async def create_table() -> None:
    """Create the application's table; on Postgres one process at a time, or both would."""
    if durable.session.get_bind().dialect.name == "postgresql":
        await durable.session.execute(sa.text("SELECT pg_advisory_xact_lock(1)"))
    await durable.session.execute(
        sa.text("CREATE TABLE IF NOT EXISTS effects (name TEXT NOT NULL, pid INTEGER NOT NULL)")
    )


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """Create the table at the start."""
    await create_table()
    yield


app = durable.wrap(
    Starlette(
        lifespan=lifespan,
        routes=[
            Route("/start/{workflow}", start, methods=["POST"]),
            Route("/run/{workflow}", run, methods=["POST"]),
            Route("/child/{workflow}", child, methods=["POST"]),
            Route("/steps", steps, methods=["POST"]),
            Route("/gate", gate, methods=["POST"]),
            Route("/plain", plain),
            Route("/limit", limit_files, methods=["POST"]),
        ],
    )
)
