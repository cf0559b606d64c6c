"""Spans of requests with a key: what they ran, and what they are answered with instead."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from support.asgi import answer, exchange, keyed
from support.interruption import Gate
from support.telemetry.spans import Spans, links_by_kind, links_of, span_id

from asgi_durable import Durable

pytestmark = pytest.mark.anyio


def attributes_of(span) -> dict[str, Any]:
    return dict(span.attributes or {})


class Shop:
    """An application whose only handler has a workflow of two steps; the second may fail.

    Attributes:
        failures: How often the second step fails yet.
        gate: Where the second step waits.
    """

    def __init__(self, url: str, spans: Spans) -> None:
        self.durable = durable = Durable(url, telemetry=spans.telemetry)
        self.app = durable.wrap(self.handle)
        self.failures = 0
        self.gate = Gate()
        self.gate.open()
        self.seen: list[object] = []

        @durable.step(name="reserve")
        async def reserve() -> None:
            return None

        @durable.step(name="charge", retry=None)
        async def charge() -> None:
            await self.gate.wait()
            if self.failures:
                self.failures -= 1
                raise OSError("no answer")

        @durable.workflow(name="pay")
        async def pay() -> None:
            await charge()

        self.reserve, self.pay, self.charge = reserve, pay, charge

    async def handle(self, scope, receive, send) -> None:
        self.seen.append(self.durable.span)
        await self.reserve()
        await self.charge() if scope["path"] == "/charge" else await self.pay()
        await answer(send)

    async def post(self, key: str = "k", path: str = "/pay"):
        """Send one request with a key; return the exchange."""
        return await exchange(self.app, keyed(key, path))


PAID = [("durable.step reserve", []), ("durable.run pay", [("durable.step charge", [])])]


async def test_a_request_is_above_the_workflows_and_steps_that_it_calls(url: str) -> None:
    spans = Spans()
    shop = Shop(url, spans)

    async with shop.durable:
        await exchange(shop.app, keyed(path="/pay", headers=[("X-Request-ID", "r1")]))

    assert spans.trees() == [("POST", PAID)]
    request = spans.take("POST")
    assert getattr(shop.seen[0], "name", None) == "POST"
    assert attributes_of(request)["idempotency.outcome"] == "executed"
    assert attributes_of(request)["durable.run"] == 1
    for span in spans.ended:
        assert attributes_of(span)["durable.request.id"] == "r1"
    assert (
        attributes_of(spans.take("durable.run pay"))["durable.workflow.id"]
        == attributes_of(request)["durable.workflow.id"] + "~1"
    )


async def test_a_replayed_response_is_linked_to_its_request(url: str) -> None:
    spans = Spans()
    shop = Shop(url, spans)

    async with shop.durable:
        await shop.post()
        first = spans.take("POST")
        spans.clear()
        result = await shop.post()

    assert result.headers("idempotent-replayed") == ["true"]
    assert spans.trees() == [("POST", [])]
    replayed = spans.take("POST")
    assert attributes_of(replayed)["idempotency.outcome"] == "replayed"
    assert links_of(replayed) == [span_id(first)]


async def test_a_retry_runs_what_is_left_and_is_linked_to_the_first_attempt(url: str) -> None:
    spans = Spans()
    shop = Shop(url, spans)
    shop.failures = 1

    async with shop.durable:
        with pytest.raises(OSError, match="no answer"):
            await shop.post(path="/charge")
        first = spans.take("POST")
        assert spans.trees() == [
            ("POST", [("durable.step reserve", []), ("durable.step charge", [])])
        ]
        spans.clear()
        await shop.post(path="/charge")

    assert spans.trees() == [("POST", [("durable.step charge", [])])]
    retry = spans.take("POST")
    assert attributes_of(retry)["idempotency.outcome"] == "resumed"
    assert attributes_of(retry)["durable.run"] == 2
    assert links_by_kind(retry) == {"origin": span_id(first), "previous": span_id(first)}
    assert first.status.status_code is StatusCode.ERROR


async def test_each_retry_is_linked_to_the_first_attempt_and_to_the_one_before(url: str) -> None:
    spans = Spans()
    shop = Shop(url, spans)
    shop.failures = 2

    async with shop.durable:
        for _ in range(2):
            with pytest.raises(OSError, match="no answer"):
                await shop.post(path="/charge")
        await shop.post(path="/charge")

    first, second, third = [span for span in spans.ended if span.name == "POST"]
    assert links_by_kind(first) == {}
    assert links_by_kind(second) == {"origin": span_id(first), "previous": span_id(first)}
    assert links_by_kind(third) == {"origin": span_id(first), "previous": span_id(second)}


@pytest.mark.parametrize("seconds", [0, math.inf])
async def test_a_workflow_that_failed_continues_below_the_retry(url: str, seconds: float) -> None:
    spans = Spans(continue_trace=seconds)
    shop = Shop(url, spans)
    shop.failures = 1

    async with shop.durable:
        with pytest.raises(OSError, match="no answer"):
            await shop.post()
        first, failed = spans.take("POST"), spans.take("durable.run pay")
        spans.clear()
        await shop.post()

    assert spans.trees() == [("POST", [("durable.run pay", [("durable.step charge", [])])])]
    run = spans.take("durable.run pay")
    assert attributes_of(run)["durable.run"] == 2
    assert links_by_kind(run) == {"origin": span_id(first), "previous": span_id(failed)}


async def test_spans_of_duplicates_and_other_requests_under_a_key_have_an_outcome(url: str) -> None:
    spans = Spans()
    shop = Shop(url, spans)
    shop.gate = Gate()

    async with shop.durable:
        first = asyncio.create_task(shop.post())
        await shop.gate.reached.wait()
        impatient = keyed(path="/pay", headers=[("Prefer", "wait=0")])
        assert (await exchange(shop.app, impatient)).status == 409
        assert (await shop.post(path="/charge")).status == 422
        duplicate = asyncio.create_task(shop.post())
        requests = shop.durable.engine.requests
        while not requests._duplicates:
            await asyncio.sleep(0)
        shop.gate.open()
        await asyncio.gather(first, duplicate)

    requests_ended = [span for span in spans.ended if span.kind is SpanKind.SERVER]
    outcomes = [attributes_of(span)["idempotency.outcome"] for span in requests_ended]
    assert outcomes == ["executed", "conflict", "mismatch", "waited"]
    origin = span_id(requests_ended[0])
    assert [links_of(span) for span in requests_ended] == [[], [origin], [], [origin]]


async def test_nothing_below_an_unsampled_request_is_sampled(url: str) -> None:
    spans = Spans(ALWAYS_OFF)
    shop = Shop(url, spans)

    async with shop.durable:
        await shop.post()

    assert shop.seen == [None]
    assert spans.ended == []
