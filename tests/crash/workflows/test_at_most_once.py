"""A process that is killed in a step that runs at most once: its body never begins again."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs_sessions("a dead process is noticed when its lease ends")

PROGRAM = """
import asyncio, os, signal, sys
from pathlib import Path
from asgi_durable import Durable, StepInterruptedError

url, ledger, kill_at = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
durable = Durable(url)


def point(name):
    with ledger.open("a") as file:
        file.write(name + "\\n")
    if name == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)


@durable.step
async def first():
    point("first")


@durable.step(at_most_once=True)
async def pay():
    point("begins")
    point("paid")
    return "paid"


@durable.step
async def look():
    point("looked")
    return "looked"


@durable.step
async def last():
    point("last")


@durable.workflow
async def order():
    await first()
    try:
        result = await pay()
    except StepInterruptedError:
        result = await look()
    await last()
    return result


async def main():
    async with durable:
        print(await durable.options(workflow_id="w").run_workflow(order))


asyncio.run(main())
"""


class Process:
    """Runs the program on one database.

    Args:
        url: The database.
        folder: For the ledger.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._ledger = folder / "ledger"

    def run(self, kill_at: str = "-") -> str:
        """Return the output of the program, which is killed at a chosen place."""
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, self._url, str(self._ledger), kill_at],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == (0 if kill_at == "-" else -signal.SIGKILL), done.stderr
        return done.stdout.strip()

    def reached(self) -> list[str]:
        """Return the places that all runs have reached, in order."""
        return self._ledger.read_text().split()


@pytest.fixture
def process(database_url: str, tmp_path: Path) -> Process:
    return Process(database_url, tmp_path)


@pytest.mark.parametrize("kill_at", ["begins", "paid"])
def test_a_body_that_was_killed_does_not_begin_again(process: Process, kill_at: str) -> None:
    process.run(kill_at)
    assert process.run() == "looked"

    paid = ["paid"] if kill_at == "paid" else []
    assert process.reached() == ["first", "begins", *paid, "looked", "last"]


def test_a_second_kill_changes_nothing(process: Process) -> None:
    process.run("paid")
    process.run("looked")
    process.run("last")
    assert process.run() == "looked"

    assert process.reached().count("begins") == 1
    assert process.reached().count("last") == 2


@pytest.mark.parametrize("kill_at", ["first", "last"])
def test_a_kill_before_it_begins_or_after_it_has_ended_is_no_interruption(
    process: Process, kill_at: str
) -> None:
    process.run(kill_at)
    assert process.run() == "paid"

    assert process.reached().count("begins") == 1
    assert process.reached().count("paid") == 1
