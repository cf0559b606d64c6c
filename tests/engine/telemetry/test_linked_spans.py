"""The span of each run is linked to the one before it; the first run needs no extra write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from support.asgi import answer, exchange, keyed
from support.databases.statements import written_statements
from support.executors import Worker, result_of, row_of, until
from support.telemetry.spans import Spans, links_by_kind, span_id

from asgi_durable import Durable

pytestmark = pytest.mark.anyio


async def executed(url: str, spans: Spans, *, waits: bool = True) -> None:
    """Begin or continue a workflow; leave it in its step if it waits there."""
    async with Worker(url, waits=waits, telemetry=spans.telemetry) as worker:
        if waits and not await exists(worker):
            await worker.begin("w")
        elif waits:
            await worker.gate.reached.wait()
        else:
            await result_of(worker, "w")


async def exists(worker: Durable) -> bool:
    running = worker.engine._running
    assert running is not None
    return await running.services.storage.get_workflow("w") is not None


async def last_span_of(url: str) -> Any:
    (found,) = await row_of(url, "w", "last_span")
    return found


async def test_every_execution_is_linked_to_the_one_before(url: str) -> None:
    first, second, third = Spans(), Spans(), Spans()
    await executed(url, first)
    await executed(url, second)
    await executed(url, third, waits=False)

    runs = [spans.take("durable.run work") for spans in (first, second, third)]
    assert [links_by_kind(run).get("previous") for run in runs] == [
        None,
        span_id(runs[0]),
        span_id(runs[1]),
    ]
    assert [(run.attributes or {})["durable.run"] for run in runs] == [1, 2, 3]


async def test_an_execution_without_a_span_leaves_the_link_to_the_one_before_it(url: str) -> None:
    first, third = Spans(), Spans()
    await executed(url, first)
    async with Worker(url, waits=True) as unseen:
        await unseen.gate.reached.wait()
    await executed(url, third, waits=False)

    previous = links_by_kind(third.take("durable.run work"))["previous"]
    assert previous == span_id(first.take("durable.run work"))


async def test_where_nothing_is_sampled_no_row_names_a_span(url: str) -> None:
    await executed(url, Spans(ALWAYS_OFF))

    assert await last_span_of(url) is None


async def test_a_first_execution_with_a_span_writes_what_one_without_writes(tmp_path: Path) -> None:
    spans = Spans()

    without = await written(f"sqlite:///{tmp_path}/without.db")
    seen = await written(f"sqlite:///{tmp_path}/seen.db", telemetry=spans.telemetry)

    assert seen == without
    assert len([span for span in spans.ended if span.name == "durable.run work"]) == 3


async def written(url: str, **options: Any) -> list[str]:
    """Run workflows of each kind; return the writes, without their values."""
    async with Durable(url, **options) as durable:

        @durable.step(name="step")
        async def step() -> None: ...

        @durable.workflow(name="work")
        async def work() -> None:
            await step()

        async def handle(scope, receive, send) -> None:
            await work()
            await answer(send)

        app = durable.wrap(handle)
        with written_statements(durable) as statements:
            await work()
            await durable.options(workflow_id="w").run_workflow(work)
            await exchange(app, keyed())
    return [text[:40] for text in statements if text.startswith(("INSERT", "UPDATE", "DELETE"))]


async def test_a_claim_that_is_refused_leaves_no_span(url: str) -> None:
    spans, others = Spans(), Spans()
    async with (
        Worker(url, waits=True, telemetry=others.telemetry) as there,
        Worker(url, telemetry=spans.telemetry) as here,
    ):
        await there.begin("w")
        handle = await here.options(workflow_id="w").start_workflow(here.work)
        there.gate.open()
        await handle.get_result()

    assert (spans.trees(), len(others.trees())) == ([], 1)


async def test_a_call_that_goes_on_with_what_is_there_has_the_span_of_that(url: str) -> None:
    first, second = Spans(), Spans()
    await executed(url, first)

    worker = Worker(url, telemetry=second.telemetry)
    # Its recovery takes nothing over: the call does.
    await worker.engine.start()
    await worker.options(workflow_id="w").run_workflow(worker.work)
    await worker.engine.stop()

    run = second.take("durable.run work")
    assert (run.attributes or {})["durable.run"] == 2
    assert links_by_kind(run) == {"previous": span_id(first.take("durable.run work"))}


async def test_a_workflow_in_the_background_names_its_span_too(url: str) -> None:
    spans = Spans()
    async with Durable(url, telemetry=spans.telemetry) as durable:

        @durable.workflow(name="later")
        async def later() -> None: ...

        @durable.workflow(name="work")
        async def work() -> None:
            await durable.background(later)

        await durable.options(workflow_id="w").run_workflow(work)
        await until(lambda: any(span.name == "durable.run later" for span in spans.ended))

    run = spans.take("durable.run later")
    (found,) = await row_of(url, "w~0", "last_span")
    assert f"{span_id(run):016x}" in found
