"""An application in two versions; its process dies in the first one. Tests run it.

Arguments: the version, 1 or 2; the URL of the step log; the folder for two more databases and for
the values that the second version has seen.

Each workflow is named after the place of its value, whose class changes.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from asgi_durable import Durable

VERSION, URL, FOLDER = sys.argv[1:]
IS_FIRST = VERSION == "1"

if IS_FIRST:
    from values.evolving.version_1 import (
        GoneError,
        Item,
        Label,
        Parcel,
        Tagged,
        item,
        label,
        parcel,
        take,
    )
else:
    from values.evolving.version_2 import (
        GoneError,
        Item,
        Label,
        Parcel,
        Tagged,
        item,
        label,
        parcel,
        take,
    )

durable = Durable(URL)
divided = Durable(
    f"sqlite:///{FOLDER}/divided.db", application_url=f"sqlite:///{FOLDER}/application.db"
)
for instance in (durable, divided):
    if IS_FIRST:
        instance.register_type(Tagged)
    else:
        instance.register_type(Tagged, aliases=["values.evolving.version_1:Tagged"])
        instance.register_exception(
            GoneError, aliases=["values.evolving.version_1:OutOfStockError"]
        )

seen: dict[str, Any] = {}
ran: list[str] = []
waiting: set[str] = set()


@durable.step(name="hold")
async def hold(place: str) -> None:
    """Wait for the kill, in the first version."""
    if IS_FIRST:
        waiting.add(place)
        await asyncio.Event().wait()


@durable.step(name="make")
async def make() -> Item:
    """Return the value."""
    ran.append("make")
    return item()


@durable.step(name="make a model")
async def make_model() -> Parcel:
    """Return a value of another kind."""
    ran.append("make a model")
    return parcel()


@durable.step(name="make unannotated")
async def make_unannotated():  # type: ignore[no-untyped-def]
    """Return a value of a class that no annotation names."""
    ran.append("make unannotated")
    return Tagged(7)


@durable.step(name="fail", retry=None)
async def fail() -> None:
    """Raise an error."""
    ran.append("fail")
    raise GoneError("tea", 2)


@durable.transaction(name="insert")
async def insert() -> Item:
    """Return the value from a transaction."""
    ran.append("insert")
    await durable.session.execute(sa.text("SELECT 1"))
    return item()


@durable.workflow(name="a child")
async def child(given: Label) -> Item:
    """Return the value."""
    ran.append("child")
    return item()


taken = durable.step(name="take")(take)


@durable.workflow(name="step result")
async def step_result() -> None:
    """Have the value as a step's result."""
    seen["step result"] = [await make(), await make_model(), await make_unannotated()]
    await hold("step result")


@durable.workflow(name="step argument")
async def step_argument() -> None:
    """Have the value as a step's argument."""
    seen["step argument"] = await taken(label())
    await hold("step argument")


@durable.workflow(name="input")
async def workflow_input(given: Item, model: Parcel) -> None:
    """Have the value as the workflow's input."""
    await hold("input")
    seen["input"] = [given, model]


@durable.workflow(name="child result")
async def child_result() -> None:
    """Have the value as a child's argument and result."""
    seen["child result"] = await child(label())
    await hold("child result")


@durable.workflow(name="error")
async def error() -> None:
    """Have the value as an error."""
    try:
        await fail()
    except GoneError as caught:
        seen["error"] = [type(caught), str(caught), caught.item, caught.left]
    await hold("error")


@durable.workflow(name="transaction")
async def transaction() -> None:
    """Have the value as a transaction's result."""
    seen["transaction"] = await insert()
    await hold("transaction")


@divided.transaction(name="insert")
async def insert_beside() -> Item:
    """Return the value from a transaction in the application's database."""
    ran.append("insert beside")
    await divided.session.execute(sa.text("SELECT 1"))
    return item()


@divided.step(name="hold")
async def hold_beside() -> None:
    """Wait for the kill, in the first version."""
    await hold("application's transaction")


@divided.workflow(name="application's transaction")
async def application_transaction() -> None:
    """Have the value as the result of a transaction in the application's database."""
    seen["application's transaction"] = await insert_beside()
    await hold_beside()


STARTED: dict[str, tuple[Durable, Any, tuple[Any, ...]]] = {
    "step result": (durable, step_result, ()),
    "step argument": (durable, step_argument, ()),
    "input": (durable, workflow_input, (item(), parcel())),
    "child result": (durable, child_result, ()),
    "error": (durable, error, ()),
    "transaction": (durable, transaction, ()),
    "application's transaction": (divided, application_transaction, ()),
}


async def begin() -> None:
    """Start all workflows, and die when all their values are durable."""
    await durable.options(workflow_id="finished result").run_workflow(child, label())
    for place, (instance, workflow, arguments) in STARTED.items():
        await instance.options(workflow_id=place).start_workflow(workflow, *arguments)
    while waiting != STARTED.keys():
        await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


async def end() -> dict[str, str]:
    """Finish all workflows, and return the values that they have seen."""
    outcomes = {}
    places = {place: instance for place, (instance, _, _) in STARTED.items()}
    for place, instance in {**places, "finished result": durable}.items():
        try:
            handle = await instance.retrieve_workflow(place)
            result = await handle.get_result(timeout=20)
            outcomes[place] = repr(seen.get(place, result))
        except Exception:
            outcomes[place] = traceback.format_exc()
    outcomes["ran"] = repr(sorted(ran))
    return outcomes


async def main() -> dict[str, str] | None:
    """Start the workflows with version 1, finish them with version 2."""
    async with durable, divided:
        return await (begin() if IS_FIRST else end())


(Path(FOLDER) / "seen").write_text(json.dumps(asyncio.run(main())))
