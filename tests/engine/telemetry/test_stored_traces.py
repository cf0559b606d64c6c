"""Workflows store the trace of their request also if no spans are made."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.asgi import answer, exchange, http_scope, keyed
from support.executors import storage_of
from support.interruption import Gate
from support.telemetry.spans import Spans, links_of

from asgi_durable import Durable

pytestmark = pytest.mark.anyio

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"
HEADERS = [("traceparent", TRACEPARENT), ("tracestate", "vendor=1")]
STORED = f"{TRACEPARENT} vendor=1"

# The process cannot make spans, and dies in a step of a workflow.
PROGRAM = """
import asyncio, os, sys
sys.modules["opentelemetry.sdk"] = None
sys.path.insert(0, "tests")
from asgi_durable import Durable
from support.asgi import answer, exchange, http_scope

durable = Durable(sys.argv[1])

@durable.step(name="die")
async def die():
    os._exit(9)

@durable.workflow(name="order")
async def order():
    await die()

async def handle(scope, receive, send):
    assert durable.request.traceparent == sys.argv[2]
    handle = await durable.options(workflow_id="w").start_workflow(order)
    await handle.get_result()

async def main():
    async with durable:
        headers = [("traceparent", sys.argv[2]), ("tracestate", "vendor=1")]
        await exchange(durable.wrap(handle), http_scope(headers=headers))

asyncio.run(main())
"""


def die_without_spans(url: str, traceparent: str = TRACEPARENT) -> None:
    """Let a process start a workflow in a request, and die."""
    command = [sys.executable, "-c", PROGRAM, url, traceparent]
    assert subprocess.run(command, timeout=60, check=False).returncode == 9


async def finish_workflow(url: str, spans: Spans) -> None:
    """Finish the workflow of the dead process."""
    durable = Durable(url, telemetry=spans.telemetry)

    @durable.step(name="die")
    async def die() -> None:
        return None

    @durable.workflow(name="order")
    async def order() -> None:
        await die()

    async with durable:
        await (await durable.retrieve_workflow("w")).get_result()


async def test_a_process_with_spans_links_to_what_one_without_has_kept(tmp_path) -> None:
    url = f"sqlite:///{tmp_path}/test.db"
    die_without_spans(url)
    spans = Spans()

    await finish_workflow(url, spans)

    run = spans.take("durable.run order")
    assert run.parent is None
    assert links_of(run) == [int(CALLER, 16)]
    (link,) = run.links
    assert f"{link.context.trace_id:032x}" == TRACE
    assert link.context.trace_state.to_header() == "vendor=1"


async def test_what_the_client_has_not_sampled_is_not_sampled_later(tmp_path) -> None:
    url = f"sqlite:///{tmp_path}/test.db"
    die_without_spans(url, f"{TRACEPARENT[:-2]}00")
    spans = Spans()

    await finish_workflow(url, spans)

    assert spans.ended == []


async def trace_context_of(durable: Durable, workflow_id: str) -> str | None:
    """Return the stored trace of a workflow."""
    workflow = await storage_of(durable).get_workflow(workflow_id)
    assert workflow is not None
    return workflow.trace_context


async def test_a_keyed_request_and_its_workflows_keep_its_trace(durable: Durable) -> None:
    ids: list[str | None] = []

    @durable.workflow(name="child")
    async def child() -> None:
        ids.append(durable.workflow_id)

    async def handle(scope, receive, send) -> None:
        ids.append(durable.workflow_id)
        await child()
        await answer(send)

    await exchange(durable.wrap(handle), keyed(headers=HEADERS))

    assert len(ids) == 2
    assert [await trace_context_of(durable, str(found)) for found in ids] == [STORED, STORED]


async def test_a_child_of_a_resumed_workflow_has_the_trace_of_its_parent(url: str) -> None:
    def shop() -> tuple[Durable, Gate, object]:
        durable, gate = Durable(url, drain_timeout=0.0), Gate()

        @durable.step(name="wait")
        async def wait() -> None:
            await gate.wait()

        @durable.workflow(name="child")
        async def child() -> None:
            return None

        @durable.workflow(name="parent")
        async def parent() -> None:
            await wait()
            await child()

        async def handle(scope, receive, send) -> None:
            await durable.options(workflow_id="w").start_workflow(parent)
            await answer(send)

        return durable, gate, durable.wrap(handle)

    first, gate, app = shop()
    async with first:
        await exchange(app, http_scope(headers=HEADERS))  # type: ignore[arg-type]
        await gate.reached.wait()
    second, gate, _ = shop()
    gate.open()
    async with second:
        await (await second.retrieve_workflow("w")).get_result()

        assert await trace_context_of(second, "w~1") == STORED


async def test_without_a_trace_nothing_is_kept(durable: Durable) -> None:
    @durable.workflow(name="work")
    async def work() -> None:
        return None

    await durable.options(workflow_id="w").run_workflow(work)

    assert await trace_context_of(durable, "w") is None
