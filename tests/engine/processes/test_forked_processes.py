"""Children that are forked from a process with an engine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.paths import TESTS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="nobody forks here")

TIMEOUT_SECONDS = 60

PROGRAM = """
import asyncio, os, signal, sys, warnings
from support.asgi import Exchange, keyed
from asgi_durable import Durable, DurableUsageError

# Python's own, from 3.12 on: the process that forks has threads.
warnings.simplefilter("ignore", DeprecationWarning)
durable = Durable(sys.argv[1])

@durable.step
async def step():
    return "done"

@durable.step
def blocking_step():
    return "done"

@durable.workflow
async def flow():
    return await step() + await durable.run_step(blocking_step)

@durable.workflow
def blocking_flow():
    return blocking_step()

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": (await flow()).encode()})

wrapped = durable.wrap(app)

async def request():
    exchange = Exchange(b"")
    await wrapped(keyed(), exchange.receive, exchange.send)
    return exchange.body.decode()

def start():
    with durable:
        return blocking_flow()

async def start_async():
    async with durable:
        return await flow()

async def call():
    return await flow()

def in_a_child(*calls):
    sys.stdout.flush()
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        print("child ended with", status, flush=True)
        return
    # One that hangs ends, so that the test fails.
    signal.alarm(30)
    for call in calls:
        try:
            print(call(), flush=True)
        except DurableUsageError as error:
            print("refused:", error, flush=True)
    # What is open is left as it is when a child ends by itself.
    sys.exit()
"""

STARTED = """
with durable:
    print(blocking_flow())
    in_a_child(
        blocking_flow,
        lambda: durable.blocking.start_workflow(blocking_flow),
        lambda: durable.blocking.run_workflow(flow),
        lambda: asyncio.run(call()),
        lambda: asyncio.run(request()),
        start,
        lambda: asyncio.run(start_async()),
    )
    print(durable.blocking.run_workflow(flow))
print("stopped")
"""

INSIDE_A_RUN = """
@durable.workflow
def forking():
    in_a_child(blocking_step)
    return blocking_step()

with durable:
    print(forking())
print("stopped")
"""

STOPPED = """
with durable:
    print(durable.blocking.run_workflow(flow))
in_a_child(start, lambda: asyncio.run(start_async()))
print(start())
"""

NEVER_STARTED = """
in_a_child(start, lambda: asyncio.run(start_async()), lambda: asyncio.run(request()))
"""


def run(program: str, url: str) -> list[str]:
    """Run a program; return its output."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program, url],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_started_engine_refuses_every_call_of_a_child(database_url: str) -> None:
    first, *refused, status, last, stopped = run(STARTED, database_url)

    assert [first, status, last, stopped] == ["done", "child ended with 0", "donedone", "stopped"]
    assert len(refused) == 7
    # The message is for the log; the client gets a code.
    assert '"code": "USAGE"' in refused.pop(4)
    assert all("child that was forked" in line for line in refused)
    assert all("start it in each child" in line for line in refused)


def test_a_child_that_is_forked_inside_a_run_is_none_of_it(database_url: str) -> None:
    refused, *others = run(INSIDE_A_RUN, database_url)

    assert "child that was forked" in refused
    assert others == ["child ended with 0", "done", "stopped"]


def test_a_child_of_a_stopped_engine_starts_its_own(database_url: str) -> None:
    lines = run(STOPPED, database_url)

    assert lines == ["donedone", "done", "donedone", "child ended with 0", "done"]


def test_a_child_of_an_engine_that_was_never_started_starts_its_own(database_url: str) -> None:
    lines = run(NEVER_STARTED, database_url)

    assert lines == ["done", "donedone", "donedone", "child ended with 0"]
