"""A program that dies at a chosen place: run by ``test_kill_points``.

Arguments: the folder for the database and the ledger; the point to die at, or ``-``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import sqlalchemy as sa

from asgi_durable import Durable

FOLDER = Path(sys.argv[1])
KILL_AT = sys.argv[2]

durable = Durable(f"sqlite:///{FOLDER}/test.db")


def point(name: str) -> None:
    """Note that this place was reached, and die there if it is the one."""
    with (FOLDER / "ledger").open("a") as ledger:
        ledger.write(f"{name}\n")
    if name == KILL_AT:
        os.kill(os.getpid(), signal.SIGKILL)


@durable.step
async def first() -> str:
    """Do one thing."""
    point("first begins")
    await asyncio.sleep(0)
    point("first ends")
    return "one"


@durable.transaction
async def insert() -> int:
    """Insert a row."""
    point("transaction begins")
    await durable.session.execute(sa.text("INSERT INTO effects VALUES ('row')"))
    point("transaction ends")
    return 2


@durable.step
async def last() -> str:
    """Do another thing."""
    point("last begins")
    return "three"


@durable.step
async def of_child() -> str:
    """Do a thing of the child's."""
    point("child's step begins")
    return "child"


@durable.workflow
async def child() -> str:
    """Do one thing of its own."""
    point("child begins")
    return await of_child()


@durable.workflow
async def work() -> list[object]:
    """Do everything."""
    point("work begins")
    results: list[object] = [await first()]
    point("first returned")
    results.append(await insert())
    point("transaction returned")
    results.append(await child())
    point("child returned")
    results.append(await last())
    point("last returned")
    return results


@durable.transaction
async def create_table() -> None:
    """Make the application's table."""
    await durable.session.execute(sa.text("CREATE TABLE IF NOT EXISTS effects (name TEXT)"))


async def main() -> None:
    """Run the workflow, or what is left of it, and write its result down."""
    async with durable:
        await create_table()
        result = await durable.options(workflow_id="w").run_workflow(work)
        point("result shown")
        (FOLDER / "result").write_text(repr(result))


asyncio.run(main())
