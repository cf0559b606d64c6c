"""The spans of runs and steps, below those of their requests, as an exporter gets them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from support.asgi import Exchange, answer, exchange, http_scope, keyed

from asgi_durable import Durable, Telemetry

pytestmark = pytest.mark.anyio

Tree = dict[str, object]


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def new_durable(url: str, exporter: InMemorySpanExporter) -> Callable[[], Durable]:
    """Return what makes one process after the other, on one database."""

    def new() -> Durable:
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        return Durable(url, telemetry=Telemetry(tracer_provider=provider))

    return new


def trees(spans: tuple[ReadableSpan, ...]) -> list[Tree]:
    """Return spans as trees of names, in the order in which they were begun."""

    def below(parent_id: int | None) -> Tree:
        found = [s for s in spans if (s.parent.span_id if s.parent else None) == parent_id]
        found.sort(key=lambda span: span.start_time or 0)
        return {span.name: below(span.context.span_id) for span in found}

    roots = sorted((s for s in spans if s.parent is None), key=lambda span: span.start_time or 0)
    return [{root.name: below(root.context.span_id)} for root in roots]


def by_name(exporter: InMemorySpanExporter, name: str) -> ReadableSpan:
    (span,) = [span for span in exporter.get_finished_spans() if span.name == name]
    return span


class Shop:
    """An application with a workflow of a step and a transaction, which fails as it is told."""

    def __init__(self, durable: Durable) -> None:
        self.durable = durable
        self.fails = False

        @durable.step(name="reserve", retry=None)
        async def reserve(item: str) -> str:
            return item

        @durable.transaction(name="pay")
        async def pay(item: str) -> str:
            if self.fails:
                msg = "no money"
                raise ValueError(msg)
            return item

        @durable.workflow(name="sell")
        async def sell(item: str) -> str:
            return await pay(await reserve(item))

        async def serve(_scope, _receive, send) -> None:
            await answer(send, (await sell("book")).encode())

        self.app = durable.wrap(serve)

    async def post(self) -> Exchange:
        return await exchange(self.app, keyed())


SOLD: Tree = {"durable.run sell": {"durable.step reserve": {}, "durable.step pay": {}}}


async def test_a_request_its_run_and_its_steps_are_one_tree(
    new_durable: Callable[[], Durable], exporter: InMemorySpanExporter
) -> None:
    shop = Shop(new_durable())
    async with shop.durable:
        result = await shop.post()

    assert trees(exporter.get_finished_spans()) == [{"POST": SOLD}]
    run, step = by_name(exporter, "durable.run sell"), by_name(exporter, "durable.step reserve")
    (request_workflow_id,) = result.headers("durable-id")
    assert run.attributes is not None
    assert step.attributes is not None
    assert run.attributes["durable.workflow.id"] == f"{request_workflow_id}~0"
    assert (run.attributes["durable.workflow.name"], run.attributes["durable.run"]) == ("sell", 1)
    assert step.attributes["durable.step.seq"] == 0
    (request_id,) = result.headers("x-request-id")
    assert run.attributes["durable.request.id"] == request_id


async def test_a_replay_has_a_span_of_its_request_and_none_of_work(
    new_durable: Callable[[], Durable], exporter: InMemorySpanExporter
) -> None:
    shop = Shop(new_durable())
    async with shop.durable:
        await shop.post()
        exporter.clear()
        await shop.post()

    (span,) = exporter.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["idempotency.outcome"] == "replayed"
    assert [link.attributes for link in span.links] == [{"durable.link": "origin"}]


async def test_a_retry_has_spans_of_what_really_runs_alone(
    new_durable: Callable[[], Durable], exporter: InMemorySpanExporter
) -> None:
    shop = Shop(new_durable())
    async with shop.durable:
        shop.fails = True
        with pytest.raises(ValueError, match="no money"):
            await shop.post()
        failed = by_name(exporter, "durable.step pay")
        first = by_name(exporter, "POST")
        exporter.clear()
        shop.fails = False
        await shop.post()

    assert failed.status.status_code is StatusCode.ERROR
    assert first.status.status_code is StatusCode.ERROR
    assert trees(exporter.get_finished_spans()) == [
        {"POST": {"durable.run sell": {"durable.step pay": {}}}}
    ]
    run = by_name(exporter, "durable.run sell")
    assert run.attributes is not None
    assert run.attributes["durable.run"] == 2
    assert run.attributes["durable.replayed_steps"] == 1
    assert [link.context.trace_id for link in run.links] == [first.context.trace_id]


async def test_the_current_span_is_the_runs_else_the_requests(
    new_durable: Callable[[], Durable],
) -> None:
    durable = new_durable()
    names: list[str | None] = []

    @durable.workflow
    async def look() -> None:
        names.append(durable.span.name)

    async def app(_scope, _receive, send) -> None:
        names.append(durable.span.name)
        await look()
        await answer(send, b"")

    async with durable:
        await exchange(durable.wrap(app), http_scope("GET", "/"))

    assert names[0] == "GET"
    assert names[1] is not None
    assert names[1].startswith("durable.run ")
    assert durable.span is None


async def test_without_a_provider_there_are_no_spans(url: str) -> None:
    durable = Durable(url)

    async def app(_scope, _receive, send) -> None:
        assert durable.span is None
        await answer(send, b"")

    async with durable:
        assert (await exchange(durable.wrap(app), keyed())).status == 200
