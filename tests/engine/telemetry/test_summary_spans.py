"""One span for the whole life of a workflow, made by the process that ends it."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import StatusCode
from support.asgi import answer, exchange, keyed
from support.executors import Worker, result_of, row_of
from support.telemetry.spans import Spans, links_by_kind, span_id

from asgi_durable import Durable

pytestmark = pytest.mark.anyio


def summaries(spans: Spans) -> list[ReadableSpan]:
    return [span for span in spans.ended if span.name.startswith("durable.workflow ")]


async def started(url: str, spans: Spans) -> None:
    """Start a workflow in its caller's span, and leave it unfinished."""
    async with Worker(url, waits=True, telemetry=spans.telemetry) as first:
        with spans.provider.get_tracer("test").start_as_current_span("caller"):
            await first.begin("w")


async def test_who_ends_a_workflow_makes_a_span_of_its_whole_life(url: str) -> None:
    first, second = Spans(summary_span=True), Spans(summary_span=True)
    await started(url, first)
    async with Worker(url, telemetry=second.telemetry) as worker:
        await result_of(worker, "w")

    (summary,), (created_at_us,) = summaries(second), await row_of(url, "w", "created_at_us")
    run = second.take("durable.run work")
    assert summaries(first) == []
    assert (summary.name, summary.parent) == ("durable.workflow work", None)
    assert summary.start_time == created_at_us * 1000
    assert (summary.end_time or 0) >= (run.start_time or 0)
    assert links_by_kind(summary) == {"origin": span_id(first.take("caller"))}
    attributes = dict(summary.attributes or {})
    assert attributes == {
        "durable.workflow.id": "w",
        "durable.workflow.name": "work",
        "durable.executions": 2,
        "durable.outcome": "SUCCESS",
    }


async def test_by_default_there_is_none(url: str) -> None:
    spans = Spans()
    async with Worker(url, telemetry=spans.telemetry) as worker:
        await worker.work()

    assert summaries(spans) == []


async def test_a_failed_workflow_has_one_that_says_so(url: str) -> None:
    spans = Spans(summary_span=True)
    async with Durable(url, telemetry=spans.telemetry) as durable:

        @durable.workflow(name="work")
        async def work() -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await work()

    (summary,) = summaries(spans)
    assert (summary.attributes or {})["durable.outcome"] == "ERROR"
    assert summary.status.status_code is StatusCode.ERROR


async def test_a_request_has_one_when_it_is_answered_for_good(url: str) -> None:
    spans = Spans(summary_span=True)
    durable = Durable(url, telemetry=spans.telemetry)
    failures = [1]

    @durable.step(name="reserve")
    async def reserve() -> None: ...

    async def handle(scope, receive, send) -> None:
        await reserve()
        if failures:
            raise OSError(failures.pop())
        await answer(send)

    app = durable.wrap(handle)
    async with durable:
        with pytest.raises(OSError, match="1"):
            await exchange(app, keyed())
        assert summaries(spans) == []
        for _ in range(2):
            await exchange(app, keyed())

    (summary,) = summaries(spans)
    first = next(span for span in spans.ended if span.name == "POST")
    assert (summary.attributes or {})["durable.executions"] == 2
    assert links_by_kind(summary) == {"origin": span_id(first)}


async def test_what_was_not_sampled_has_none(url: str) -> None:
    off, on = Spans(ALWAYS_OFF), Spans(ALWAYS_ON, summary_span=True)
    await started(url, off)
    async with Worker(url, telemetry=on.telemetry) as worker:
        await result_of(worker, "w")

    assert on.ended == []
