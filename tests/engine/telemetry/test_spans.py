"""Spans of runs and steps: only for those that really run, each a child of its caller's."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    StaticSampler,
)
from opentelemetry.trace import StatusCode
from support.interruption import Gate
from support.telemetry.spans import Spans, links_by_kind, span_id

from asgi_durable import Durable, RetryPolicy, StepInterruptedError, StorageUnavailableError
from asgi_durable.ids import step_key

pytestmark = pytest.mark.anyio

QUICK = RetryPolicy(max_attempts=3, initial_interval=0.001)


class Shop(Durable):
    """Has workflows of every kind.

    Args:
        url: The database.
        spans: The exporter of its spans.
        waits: True if the gate is closed at first.
    """

    def __init__(self, url: str, spans: Spans, *, waits: bool = False) -> None:
        super().__init__(url, telemetry=spans.telemetry, drain_timeout=0.0)
        self.gate = Gate()
        if not waits:
            self.gate.open()

        @self.step(name="reserve")
        async def reserve() -> None:
            return None

        @self.step(name="charge")
        async def charge() -> None:
            await self.gate.wait()

        @self.transaction(name="insert")
        async def insert() -> int:
            return 1

        @self.workflow(name="ship")
        async def ship() -> int:
            return await insert()

        @self.workflow(name="order")
        async def order() -> int:
            await reserve()
            await charge()
            return await ship()

        self.order = order
        self.ship = ship


ORDER = (
    "durable.run order",
    [
        ("durable.step reserve", []),
        ("durable.step charge", []),
        ("durable.run ship", [("durable.step insert", [])]),
    ],
)


async def interrupted_order(url: str, spans: Spans) -> Any:
    """Start an order and leave it in its second step; return the caller's span, if sampled."""
    async with Shop(url, spans, waits=True) as shop:
        with spans.provider.get_tracer("test").start_as_current_span("caller"):
            await shop.options(workflow_id="w").start_workflow(shop.order)
        await shop.gate.reached.wait()
    return next((span for span in spans.ended if span.name == "caller"), None)


async def test_steps_and_children_are_below_their_workflow(url: str) -> None:
    spans = Spans()

    async with Shop(url, spans) as shop:
        await shop.options(workflow_id="w").run_workflow(shop.order)

    assert spans.trees() == [ORDER]
    assert len({span.get_span_context().trace_id for span in spans.ended}) == 1
    assert dict(spans.take("durable.run order").attributes or {}) == {
        "durable.workflow.id": "w",
        "durable.workflow.name": "order",
        "durable.run": 1,
        "durable.outcome": "SUCCESS",
    }
    assert dict(spans.take("durable.step charge").attributes or {}) == {
        "durable.workflow.id": "w",
        "durable.workflow.name": "order",
        "durable.run": 1,
        "durable.step.seq": 1,
        "durable.step.kind": "step",
        "durable.step.key": step_key("w", 1),
        "durable.step.attempt": 1,
    }
    insert = spans.take("durable.step insert").attributes or {}
    assert insert["durable.workflow.id"] == "w~2"
    assert insert["durable.step.kind"] == "transaction"
    assert insert["durable.step.key"] == step_key("w~2", 0)


async def test_a_run_is_the_child_of_the_span_that_it_is_called_in(url: str) -> None:
    spans = Spans()

    async with Shop(url, spans) as shop:
        with spans.provider.get_tracer("test").start_as_current_span("caller"):
            await shop.run_workflow(shop.ship)
            handle = await shop.start_workflow(shop.ship)
        await handle.get_result()

    ship = ("durable.run ship", [("durable.step insert", [])])
    assert spans.trees() == [("caller", [ship, ship])]


async def test_a_resumed_run_is_a_root_linked_to_its_origin_and_replays_nothing(url: str) -> None:
    spans = Spans()
    caller = await interrupted_order(url, spans)
    interrupted = spans.take("durable.run order")
    assert (interrupted.attributes or {})["durable.outcome"] == "INTERRUPTED"
    spans.clear()

    async with Shop(url, spans) as shop:
        await (await shop.retrieve_workflow("w")).get_result()

    run = spans.take("durable.run order")
    assert spans.trees() == [
        (
            "durable.run order",
            [
                ("durable.step charge", []),
                ("durable.run ship", [("durable.step insert", [])]),
            ],
        )
    ]
    assert links_by_kind(run) == {"origin": span_id(caller), "previous": span_id(interrupted)}
    assert run.get_span_context().trace_id != caller.get_span_context().trace_id
    assert (run.attributes or {})["durable.run"] == 2
    assert (run.attributes or {})["durable.replayed_steps"] == 1
    (replayed,) = run.events
    # Before a new run begins.
    charge = spans.take("durable.step charge")
    assert run.start_time <= replayed.timestamp <= charge.start_time
    assert replayed.name == "durable.replayed"
    assert 0 < (replayed.attributes or {})["durable.replay.duration"] < math.inf


async def test_a_run_that_calls_nothing_new_replays_until_it_ends(url: str) -> None:
    spans, is_first = Spans(), True
    async with Durable(url, telemetry=spans.telemetry, drain_timeout=0.0) as durable:

        @durable.step
        async def step() -> None: ...

        @durable.workflow(name="work")
        async def work() -> None:
            nonlocal is_first
            await step()
            if is_first:
                is_first = False
                raise StorageUnavailableError("away")

        # It is resumed without a call, behind its last recorded step.
        await (await durable.options(workflow_id="w").start_workflow(work)).get_result()

    first, again = [span for span in spans.ended if span.name == "durable.run work"]
    assert [event.name for event in first.events if event.name != "exception"] == []
    assert [event.name for event in again.events] == ["durable.replayed"]


async def test_what_was_not_sampled_is_not_sampled_after_a_restart_either(url: str) -> None:
    # Not even by a sampler that ignores the decision about the parent.
    off, on = Spans(ALWAYS_OFF), Spans(ALWAYS_ON)
    assert await interrupted_order(url, off) is None

    async with Shop(url, on) as shop:
        await (await shop.retrieve_workflow("w")).get_result()

    assert (off.trees(), on.trees()) == ([], [])


async def test_what_was_sampled_is_sampled_after_a_restart_as_well(url: str) -> None:
    on, rarely = Spans(), Spans(ParentBased(StaticSampler(Decision.DROP)))
    caller = await interrupted_order(url, on)

    async with Shop(url, rarely) as shop:
        await (await shop.retrieve_workflow("w")).get_result()

    # The sampler has decided about that trace; another trace would be another decision.
    run = rarely.take("durable.run order")
    assert run.parent is not None
    assert run.parent.span_id == span_id(caller)


@pytest.mark.parametrize("seconds", [300, math.inf])
async def test_a_run_that_is_resumed_in_time_goes_on_in_its_trace(url: str, seconds) -> None:
    first, second = Spans(), Spans(continue_trace=seconds)
    caller = await interrupted_order(url, first)

    async with Shop(url, second) as shop:
        await (await shop.retrieve_workflow("w")).get_result()

    run = second.take("durable.run order")
    assert run.parent is not None
    assert run.parent.span_id == span_id(caller)
    assert {span.get_span_context().trace_id for span in second.ended} == {
        caller.get_span_context().trace_id
    }
    previous = first.take("durable.run order")
    assert links_by_kind(run) == {"previous": span_id(previous)}
    assert (run.attributes or {})["durable.run"] == 2
    assert second.trees() == [(ORDER[0], ORDER[1][1:])]


async def test_a_run_that_is_resumed_too_late_is_a_root_linked_to_its_origin(url: str) -> None:
    first, second = Spans(), Spans(continue_trace=1e-6)
    caller = await interrupted_order(url, first)

    async with Shop(url, second) as shop:
        await (await shop.retrieve_workflow("w")).get_result()

    run = second.take("durable.run order")
    previous = first.take("durable.run order")
    assert run.parent is None
    assert links_by_kind(run) == {"origin": span_id(caller), "previous": span_id(previous)}


async def test_what_was_not_sampled_does_not_go_on_in_its_trace_either(url: str) -> None:
    off, on = Spans(ALWAYS_OFF), Spans(ALWAYS_ON, continue_trace=math.inf)
    await interrupted_order(url, off)

    async with Shop(url, on) as shop:
        await (await shop.retrieve_workflow("w")).get_result()

    assert on.trees() == []


async def test_a_failed_step_is_an_error_and_so_is_a_workflow_that_lets_it_through(
    url: str,
) -> None:
    spans = Spans()
    async with Durable(url, telemetry=spans.telemetry) as durable:

        @durable.step(name="fail", retry=None)
        async def fail() -> None:
            raise ValueError("no")

        @durable.workflow(name="catch")
        async def catch() -> None:
            with pytest.raises(ValueError, match="no"):
                await fail()

        @durable.workflow(name="pass on")
        async def pass_on() -> None:
            await fail()

        await catch()
        with pytest.raises(ValueError, match="no"):
            await pass_on()

    statuses = [(span.name, span.status.status_code) for span in spans.ended]
    assert statuses == [
        ("durable.run catch", StatusCode.UNSET),
        ("durable.step fail", StatusCode.ERROR),
        ("durable.run pass on", StatusCode.ERROR),
        ("durable.step fail", StatusCode.ERROR),
    ]
    run = spans.take("durable.run pass on")
    assert (run.attributes or {})["error.type"] == "ValueError"
    assert (run.attributes or {})["durable.outcome"] == "ERROR"
    assert [event.name for event in run.events] == ["exception"]


async def test_attempts_of_a_step_are_events_of_its_span(url: str) -> None:
    spans = Spans()
    left = [1, 2]
    async with Durable(url, telemetry=spans.telemetry) as durable:

        @durable.step(name="flaky", retry=QUICK)
        async def flaky() -> None:
            if left:
                raise OSError(str(left.pop()))

        @durable.workflow(name="work")
        async def work() -> None:
            await flaky()

        await work()

    flaky_span = spans.take("durable.step flaky")
    assert [event.name for event in flaky_span.events] == ["durable.step.retry"] * 2
    assert (flaky_span.attributes or {})["durable.step.attempt"] == 3
    assert flaky_span.status.status_code is StatusCode.UNSET


async def test_attempts_of_a_transaction_are_counted(url: str) -> None:
    spans = Spans()
    left = [1, 2]
    async with Durable(url, telemetry=spans.telemetry) as durable:

        @durable.transaction(name="insert")
        async def insert() -> None:
            if left:
                raise StorageUnavailableError(str(left.pop()))

        @durable.workflow(name="work")
        async def work() -> None:
            await insert()

        await work()

    assert (spans.take("durable.step insert").attributes or {})["durable.step.attempt"] == 3


async def test_concurrent_steps_are_siblings(url: str) -> None:
    spans = Spans()
    async with Durable(url, telemetry=spans.telemetry) as durable:

        @durable.step(name="one")
        async def one(number: int) -> str:
            with spans.provider.get_tracer("test").start_as_current_span(f"inside {number}"):
                return str(number)

        @durable.workflow(name="work")
        async def work() -> list[str]:
            return await asyncio.gather(one(1), one(2))

        await work()

    (tree,) = spans.trees()
    assert tree[0] == "durable.run work"
    assert sorted(tree[1]) == [
        ("durable.step one", [("inside 1", [])]),
        ("durable.step one", [("inside 2", [])]),
    ]


async def test_the_span_of_the_current_run_can_be_added_to(url: str) -> None:
    spans = Spans()
    async with Durable(url, telemetry=spans.telemetry) as durable:

        @durable.step(name="one")
        async def one() -> None:
            assert durable.span is not None
            durable.span.set_attribute("order", 7)

        @durable.workflow(name="work")
        async def work() -> None:
            await one()

        await work()
        assert durable.span is None

    assert (spans.take("durable.run work").attributes or {})["order"] == 7


async def test_without_a_provider_there_are_no_spans(durable: Durable) -> None:
    @durable.workflow
    async def work() -> bool:
        return durable.span is None

    assert await work()


async def test_a_step_that_is_interrupted_has_a_span_where_its_body_ran_alone(url: str) -> None:
    first, second = Spans(), Spans()
    gate = Gate()

    def process(spans: Spans) -> tuple[Durable, Callable[[], Awaitable[None]]]:
        durable = Durable(url, telemetry=spans.telemetry, drain_timeout=0.0)

        @durable.step(name="pay", at_most_once=True)
        async def pay() -> None:
            await gate.wait()

        @durable.workflow(name="order")
        async def order() -> None:
            await pay()

        return durable, order

    durable, order = process(first)
    async with durable:
        await durable.options(workflow_id="w").start_workflow(order)
        await gate.reached.wait()
    durable, _ = process(second)
    async with durable:
        handle = await durable.retrieve_workflow("w")
        with pytest.raises(StepInterruptedError):
            await handle.get_result()

    assert first.trees() == [("durable.run order", [("durable.step pay", [])])]
    assert second.trees() == [("durable.run order", [])]
