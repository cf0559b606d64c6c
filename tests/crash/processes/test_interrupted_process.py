"""A process that is interrupted from the keyboard in the middle of a step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio, sys
from pathlib import Path
from asgi_durable import Durable

durable = Durable(sys.argv[1])
ledger = Path(sys.argv[2])


def note(text):
    with ledger.open("a") as file:
        file.write(text + "\\n")


@durable.step
async def first():
    note("first")


@durable.step
async def second():
    note("second")
    if sys.argv[3] == "interrupt":
        raise KeyboardInterrupt


@durable.workflow
async def work():
    await first()
    await second()
    return "done"


async def main():
    async with durable:
        print(await durable.options(workflow_id="w").run_workflow(work))


asyncio.run(main())
"""


def run(tmp_path: Path, how: str) -> subprocess.CompletedProcess[str]:
    arguments = [f"sqlite:///{tmp_path}/test.db", str(tmp_path / "ledger"), how]
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_keyboard_interrupt_is_neither_retried_nor_recorded(tmp_path: Path) -> None:
    interrupted = run(tmp_path, "interrupt")
    assert "KeyboardInterrupt" in interrupted.stderr
    assert (tmp_path / "ledger").read_text().split() == ["first", "second"]

    resumed = run(tmp_path, "go on")

    assert resumed.stdout == "done\n", resumed.stderr
    assert (tmp_path / "ledger").read_text().split() == ["first", "second", "second"]
