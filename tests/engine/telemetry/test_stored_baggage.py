"""Members of a request's baggage that may be stored are there again after a restart."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from opentelemetry import baggage, context
from opentelemetry.propagate import inject
from support.asgi import answer, exchange, http_scope, keyed
from support.executors import storage_of
from support.interruption import Gate
from support.lifespan import lifespan
from support.telemetry.spans import Spans, links_of

from asgi_durable import Durable, IdempotencyPolicy, Telemetry

pytestmark = pytest.mark.anyio

Headers = list[tuple[str, str]]

CALLER = "b7ad6b7169203331"
TRACEPARENT = f"00-0af7651916cd43dd8448eb211c80319c-{CALLER}-01"
TRACE = [("traceparent", TRACEPARENT), ("tracestate", "vendor=1 2")]
BAGGAGE = [("baggage", "user=ann,tenant=a%20b;ttl=1,plan=pro")]
KEYS = ("tenant", "plan")
KEPT = {"tenant": "a b", "plan": "pro"}


class Seen:
    """The baggage that the code of a workflow and of its step has seen."""

    def __init__(self) -> None:
        self.baggage: list[dict[str, str]] = []
        self.current: list[dict[str, object]] = []
        self.sent: list[dict[str, str]] = []
        self.has_looked = asyncio.Event()

    def look(self, durable: Durable) -> None:
        carrier: dict[str, str] = {}
        inject(carrier)
        self.baggage.append(dict(durable.baggage))
        self.current.append(dict(baggage.get_all()))
        self.sent.append(carrier)
        self.has_looked.set()


def shop(url: str, telemetry: Telemetry | None = None) -> tuple[Durable, Gate, Seen, Any]:
    """Return a service with a workflow whose step waits, and an app that starts it."""
    telemetry = telemetry or Telemetry(baggage_keys=KEYS)
    durable, gate, seen = Durable(url, drain_timeout=0.0, telemetry=telemetry), Gate(), Seen()

    @durable.step(name="wait")
    async def wait() -> None:
        await gate.wait()
        seen.look(durable)

    @durable.workflow(name="child")
    async def child() -> None:
        seen.look(durable)

    @durable.workflow(name="parent")
    async def parent() -> None:
        await wait()
        seen.look(durable)
        await child()

    async def handle(scope, receive, send) -> None:
        await durable.options(workflow_id="w").start_workflow(parent)
        await answer(send)

    return durable, gate, seen, durable.wrap(handle)


async def leave(
    url: str, headers: list[tuple[str, str]], telemetry: Telemetry | None = None
) -> Any:
    """Start the workflow in a request, and stop in its step; return the baggage in its row."""
    first, gate, _, app = shop(url, telemetry)
    async with first:
        await exchange(app, http_scope(headers=headers))
        await gate.reached.wait()
        return await stored_baggage(first, "w")


async def continue_workflow(url: str) -> Seen:
    """Continue as another process; return what the code has seen."""
    second, gate, seen, _ = shop(url)
    gate.open()
    async with second:
        await (await second.retrieve_workflow("w")).get_result()
        assert await stored_baggage(second, "w~1") == await stored_baggage(second, "w")
    return seen


async def stored_baggage(durable: Durable, workflow_id: str) -> str | None:
    workflow = await storage_of(durable).get_workflow(workflow_id)
    assert workflow is not None
    return workflow.trace_context


async def test_named_members_are_kept_and_there_again(url: str) -> None:
    assert (
        await leave(url, [*TRACE, *BAGGAGE]) == f"{TRACEPARENT} vendor=1 2\ntenant=a%20b,plan=pro"
    )

    seen = await continue_workflow(url)

    assert seen.baggage == [KEPT] * 3


async def test_baggage_is_kept_without_a_trace(url: str) -> None:
    assert await leave(url, BAGGAGE) == "\ntenant=a%20b,plan=pro"

    assert (await continue_workflow(url)).baggage == [KEPT] * 3


async def test_no_member_is_kept_unless_it_is_named(url: str) -> None:
    assert await leave(url, BAGGAGE, Telemetry()) is None


@pytest.mark.parametrize(("keys", "more"), [((), ""), (("plan",), "\nplan=pro")])
async def test_what_may_be_kept_no_more_is_not_handed_on(url: str, keys, more) -> None:
    await leave(url, [*TRACE, *BAGGAGE])
    second, gate, _, _ = shop(url, Telemetry(baggage_keys=keys))
    gate.open()

    async with second:
        await (await second.retrieve_workflow("w")).get_result()

        assert await stored_baggage(second, "w~1") == f"{TRACEPARENT} vendor=1 2{more}"


async def test_it_is_the_current_baggage_of_runs_and_steps_where_there_is_tracing(
    url: str,
) -> None:
    await leave(url, [*TRACE, *BAGGAGE])
    spans = Spans(baggage_keys=KEYS)
    second, gate, seen, _ = shop(url, spans.telemetry)
    gate.open()

    async with second:
        await (await second.retrieve_workflow("w")).get_result()

    assert seen.current == [KEPT] * 3
    assert [sent["baggage"] for sent in seen.sent] == ["tenant=a+b,plan=pro"] * 3
    assert links_of(spans.take("durable.run parent")) == [int(CALLER, 16)]
    assert baggage.get_all() == {}


async def test_it_is_current_where_the_trace_is_not_sampled(url: str) -> None:
    await leave(url, [("traceparent", f"{TRACEPARENT[:-2]}00"), *BAGGAGE])
    spans = Spans(baggage_keys=KEYS)
    second, gate, seen, _ = shop(url, spans.telemetry)
    gate.open()

    async with second:
        await (await second.retrieve_workflow("w")).get_result()

    assert (seen.current, spans.ended) == ([KEPT] * 3, [])


async def test_what_the_application_has_put_into_its_baggage_counts(durable: Durable) -> None:
    durable.telemetry.baggage_keys = frozenset(KEYS)
    seen: list[object] = []

    @durable.workflow
    async def work() -> None:
        seen.append(dict(durable.baggage))

    async def handle(scope, receive, send) -> None:
        mine = baggage.set_baggage("user", "ann", baggage.set_baggage("tenant", "c, d"))
        token = context.attach(mine)
        await durable.options(workflow_id="w").run_workflow(work)
        context.detach(token)
        await answer(send)

    await exchange(durable.wrap(handle), http_scope(headers=BAGGAGE))

    assert seen == [{"tenant": "c, d", "plan": "pro"}]
    assert await stored_baggage(durable, "w") == "\ntenant=c%2C%20d,plan=pro"


async def test_what_a_workflow_has_changed_of_its_baggage_is_current_in_its_steps(url: str) -> None:
    durable = Durable(url, telemetry=Spans(baggage_keys=KEYS).telemetry)
    seen = Seen()

    @durable.step
    async def look() -> None:
        seen.look(durable)

    @durable.workflow
    async def work() -> None:
        token = context.attach(baggage.set_baggage("tenant", "new"))
        await look()
        context.detach(token)

    async def handle(scope, receive, send) -> None:
        await work()
        await answer(send)

    async with durable:
        await exchange(durable.wrap(handle), http_scope(headers=BAGGAGE))

    # The request's baggage is the current one, with all members.
    assert seen.current == [{"user": "ann", **KEPT, "tenant": "new"}]
    assert seen.baggage == [KEPT]


async def test_a_keyed_request_keeps_that_of_its_first_try(url: str) -> None:
    durable = Durable(url, telemetry=Telemetry(baggage_keys=KEYS))
    seen: list[dict[str, str]] = []

    async def handle(scope, receive, send) -> None:
        seen.append(dict(durable.baggage))
        if len(seen) == 1:
            raise ConnectionError
        await answer(send)

    async with durable:
        app = durable.wrap(handle)
        with pytest.raises(ConnectionError):
            await exchange(app, keyed(headers=BAGGAGE))
        await exchange(app, keyed(headers=[("baggage", "tenant=other")]))
        await exchange(app, http_scope(headers=[("baggage", "tenant=other")]))

    assert seen == [KEPT, KEPT, {"tenant": "other"}]
    assert durable.baggage == {}


async def test_a_request_that_goes_on_without_its_client_has_its_baggage_in_its_steps(
    url: str,
) -> None:
    policy = IdempotencyPolicy(recover="server")
    gate = Gate()

    def service(telemetry: Telemetry) -> tuple[Seen, Any]:
        durable = Durable(url, drain_timeout=0.0, idempotency=policy, telemetry=telemetry)
        seen = Seen()

        @durable.step(name="wait")
        async def wait() -> None:
            await gate.wait()
            seen.look(durable)

        async def handle(scope, receive, send) -> None:
            if scope["type"] == "http":
                await wait()
                await answer(send)

        return seen, durable.wrap(handle)

    _, app = service(Telemetry(baggage_keys=KEYS))
    async with lifespan(app):
        request = asyncio.create_task(exchange(app, keyed(headers=BAGGAGE)))
        await gate.reached.wait()
    await request
    spans = Spans(baggage_keys=KEYS)
    seen, app = service(spans.telemetry)
    gate.open()
    async with lifespan(app):
        await seen.has_looked.wait()

    assert (seen.baggage, seen.current) == ([KEPT], [KEPT])


class Service:
    """A service that records the headers that it gets."""

    def __init__(self, durable: Durable) -> None:
        self.headers: dict[str, str] = {}
        self._hooks = {"request": [durable.add_trace_headers]}

    def _respond(self, request: httpx.Request) -> httpx.Response:
        wanted = ("traceparent", "tracestate", "baggage")
        self.headers = {name: request.headers[name] for name in wanted if name in request.headers}
        return httpx.Response(200)

    async def get(self, headers: dict[str, str] | None = None) -> dict[str, str]:
        transport = httpx.MockTransport(self._respond)
        async with httpx.AsyncClient(transport=transport, event_hooks=self._hooks) as client:
            await client.get("https://shop.example/", headers=headers)
        return self.headers


HANDED_ON = {
    "traceparent": TRACEPARENT,
    "tracestate": "vendor=1 2",
    "baggage": "tenant=a%20b,plan=pro",
}


async def test_what_is_called_belongs_to_the_trace_without_spans_too(url: str) -> None:
    durable = Durable(url, telemetry=Telemetry(baggage_keys=KEYS))
    service, sent = Service(durable), []

    @durable.step(name="call")
    async def call() -> None:
        sent.append(await service.get())

    @durable.workflow(name="work")
    async def work() -> None:
        await call()

    async def handle(scope, receive, send) -> None:
        sent.append(await service.get())
        await work()
        await answer(send)

    async with durable:
        await exchange(durable.wrap(handle), http_scope(headers=[*TRACE, *BAGGAGE]))
        sent.append(await service.get())

    assert sent == [HANDED_ON, HANDED_ON, {}]


async def test_with_spans_the_current_one_is_sent(url: str) -> None:
    spans = Spans(baggage_keys=KEYS)
    durable = Durable(url, telemetry=spans.telemetry)
    service, sent = Service(durable), []

    @durable.step(name="call")
    async def call() -> None:
        sent.append(await service.get())

    @durable.workflow(name="work")
    async def work() -> None:
        await call()

    async def handle(scope, receive, send) -> None:
        await work()
        await answer(send)

    async with durable:
        await exchange(durable.wrap(handle), http_scope(headers=[*TRACE, *BAGGAGE]))

    own = spans.take("durable.step call").get_span_context()
    assert sent == [
        {
            "traceparent": f"00-{own.trace_id:032x}-{own.span_id:016x}-01",
            "tracestate": "vendor=1 2",
            # Without the property, which OpenTelemetry takes for a part of the value.
            "baggage": "user=ann,tenant=a+b,plan=pro",
        }
    ]


async def test_a_request_that_is_in_a_trace_already_is_left_alone(durable: Durable) -> None:
    service, sent = Service(durable), []
    theirs = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}

    async def handle(scope, receive, send) -> None:
        sent.append(await service.get(theirs))
        await answer(send)

    await exchange(durable.wrap(handle), http_scope(headers=TRACE))

    assert sent == [theirs]
