"""A process that is killed while a workflow sleeps: the next one sleeps what is left."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs_sessions("a dead process is noticed when its lease ends")

# Longer than it takes until a process has begun, and been killed.
SECONDS = 8.0

PROGRAM = """
import asyncio, os, signal, sys, time
from pathlib import Path
from asgi_durable import Durable

url, ledger, seconds, dies = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
durable = Durable(url)


def note(name):
    with ledger.open("a") as file:
        file.write(f"{name} {time.time()}\\n")


@durable.step
async def before():
    note("before")


@durable.step
async def after():
    note("after")


@durable.workflow
async def work():
    await before()
    await durable.sleep(seconds)
    await after()
    return "done"


async def main():
    note("process")
    async with durable:
        handle = await durable.options(workflow_id="w").start_workflow(work)
        while dies == "dies":
            if (await handle.get_status()).status == "SUSPENDED":
                os.kill(os.getpid(), signal.SIGKILL)
            await asyncio.sleep(0.01)
        print(await handle.get_result())


asyncio.run(main())
"""


def run(url: str, ledger: Path, how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, url, str(ledger), str(SECONDS), how],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_what_is_left_of_a_sleep_is_slept_after_a_kill(database_url: str, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    killed = [run(database_url, ledger, "dies").returncode for _ in range(2)]
    resumed = run(database_url, ledger, "lives")

    assert killed == [-signal.SIGKILL] * 2
    assert resumed.stdout == "done\n", resumed.stderr
    lines = [line.split() for line in ledger.read_text().splitlines()]
    assert [name for name, _ in lines] == ["process", "before", "process", "process", "after"]
    (_, began_at, _, resumed_at, ended_at) = [float(at) for _, at in lines]
    assert ended_at >= began_at + SECONDS
    assert ended_at < resumed_at + SECONDS
