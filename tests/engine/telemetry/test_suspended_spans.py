"""A suspended run has no span, and continues in a new one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from support.asgi import answer, exchange, http_scope
from support.executors import kill, result_of, row_of, until
from support.telemetry.metrics import Figures
from support.telemetry.spans import Spans, links_by_kind, span_id

from asgi_durable import Durable
from asgi_durable.engine.runs import suspension as sleepers
from asgi_durable.engine.steps import sleep

pytestmark = pytest.mark.anyio

# So long that no test runs until its end.
LONG_SECONDS = 36_000.0
SUSPENDED = "durable.suspended"


class Clock:
    """The clock that ends sleeps; a test can set it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real, self.passed = sleepers.seconds_until, 0.0
        monkeypatch.setattr(sleep, "LONGEST_NAP_SECONDS", 0.01)
        for module in (sleep, sleepers):
            monkeypatch.setattr(module, "seconds_until", lambda at_us: real(at_us) - self.passed)

    def end_sleeps(self) -> None:
        self.passed += LONG_SECONDS


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Process(Durable):
    """An instance with workflows that sleep."""

    def __init__(self, url: str, spans: Spans, seconds: float = LONG_SECONDS) -> None:
        super().__init__(url, telemetry=spans.telemetry, drain_timeout=0.0)
        self.tracer = spans.provider.get_tracer("test")
        self.woken = asyncio.Event()

        @self.step(name="step")
        async def step(name: str) -> str:
            with self.tracer.start_as_current_span(name):
                return name

        @self.workflow(name="work")
        async def work() -> None:
            await step("before")
            await self.sleep(seconds)
            await step("after")

        @self.workflow(name="parent")
        async def parent() -> None:
            await work()
            await step("last")

        @self.workflow(name="branches")
        async def branches() -> None:
            async def branch(name: str, times: int) -> None:
                for turn in range(1, times + 1):
                    await self.sleep(turn * seconds)
                await step(name)
                with self.tracer.start_as_current_span("own"):
                    pass

            await asyncio.gather(branch("one", 1), branch("two", 2))
            await step("last")

        @self.workflow(name="impatient")
        async def impatient() -> None:
            sleeping = asyncio.ensure_future(self.sleep(seconds))
            await self.woken.wait()
            await step("woken")
            sleeping.cancel()

        @self.workflow(name="cancelling")
        async def cancelling() -> None:
            sleeping = asyncio.ensure_future(self.sleep(seconds))
            await self.woken.wait()
            sleeping.cancel()
            await asyncio.wait([sleeping])
            with self.tracer.start_as_current_span("own"):
                pass

        @self.workflow(name="first")
        async def first() -> None:
            sleeping = asyncio.ensure_future(self.sleep(seconds))
            steps = [asyncio.ensure_future(step(str(number))) for number in range(2)]
            await asyncio.wait([sleeping, *steps], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.gather(*steps)
            await step("last")
            sleeping.cancel()

        self.first = first
        self.work, self.parent, self.branches = work, parent, branches
        self.impatient, self.cancelling = impatient, cancelling

    async def begin(self, workflow: Callable[..., Any]) -> None:
        """Start a workflow in its caller's span."""
        with self.tracer.start_as_current_span("caller"):
            await self.options(workflow_id="w").start_workflow(workflow)


def runs(spans: Spans, name: str = "work") -> list[ReadableSpan]:
    return [span for span in spans.ended if span.name == f"durable.run {name}"]


async def is_suspended(spans: Spans, times: int = 1, name: str = "work") -> None:
    await until(lambda: len(runs(spans, name)) == times)


def outcomes(found: list[ReadableSpan]) -> list[object]:
    return [(span.attributes or {})["durable.outcome"] for span in found]


def ran(name: str) -> tuple[str, Any]:
    return ("durable.step step", [(name, [])])


async def test_a_run_that_sleeps_ends_its_span_and_goes_on_in_a_linked_one(
    url: str, clock: Clock
) -> None:
    spans = Spans()
    async with Process(url, spans) as process:
        await process.begin(process.work)
        await is_suspended(spans)
        clock.end_sleeps()
        await result_of(process, "w")

    caller, (first, second) = spans.take("caller"), runs(spans)
    assert spans.trees() == [
        ("caller", [("durable.run work", [ran("before")])]),
        ("durable.run work", [ran("after")]),
    ]
    assert [event.name for event in first.events] == [SUSPENDED]
    assert str((first.events[0].attributes or {})["durable.suspended.until"]).startswith("20")
    assert outcomes([first, second]) == ["SUSPENDED", "SUCCESS"]
    assert links_by_kind(second) == {"origin": span_id(caller), "previous": span_id(first)}
    assert [(span.attributes or {})["durable.run"] for span in (first, second)] == [1, 1]
    assert second.get_span_context().trace_id != first.get_span_context().trace_id
    assert (second.start_time or 0) >= (first.end_time or 0)


async def test_in_time_it_goes_on_in_its_trace(url: str, clock: Clock) -> None:
    spans = Spans(continue_trace=300)
    async with Process(url, spans) as process:
        await process.begin(process.work)
        await is_suspended(spans)
        clock.end_sleeps()
        await result_of(process, "w")

    run = ("durable.run work", [ran("before")])
    assert spans.trees() == [("caller", [run, (run[0], [ran("after")])])]
    first, second = runs(spans)
    assert links_by_kind(second) == {"previous": span_id(first)}


async def test_a_short_sleep_is_part_of_the_span_that_it_is_in(url: str) -> None:
    spans = Spans()
    async with Process(url, spans, seconds=0.05) as process:
        await process.work()

    assert spans.trees() == [("durable.run work", [ran("before"), ran("after")])]
    assert [event.name for event in runs(spans)[0].events] == []


async def test_a_run_is_suspended_when_all_its_branches_sleep(url: str, clock: Clock) -> None:
    spans = Spans()
    async with Process(url, spans) as process:
        await process.begin(process.branches)
        for times in (1, 2):
            await is_suspended(spans, times, "branches")
            clock.end_sleeps()
        await result_of(process, "w")

    first, second, third = runs(spans, "branches")
    assert outcomes([first, second, third]) == ["SUSPENDED", "SUSPENDED", "SUCCESS"]
    own = ("own", [])
    # Later spans are children of the span that is open by then, as spans of users are.
    assert spans.trees() == [
        ("caller", [("durable.run branches", [])]),
        ("durable.run branches", [ran("one"), own]),
        ("durable.run branches", [ran("two"), own, ran("last")]),
    ]
    assert links_by_kind(third)["previous"] == span_id(second)


async def test_a_caller_is_suspended_with_what_it_waits_for(url: str, clock: Clock) -> None:
    spans = Spans()
    async with Process(url, spans) as process:
        await process.begin(process.parent)
        await is_suspended(spans, name="parent")
        clock.end_sleeps()
        await result_of(process, "w")

    parents, works = runs(spans, "parent"), runs(spans)
    assert spans.trees() == [
        ("caller", [("durable.run parent", [("durable.run work", [ran("before")])])]),
        ("durable.run parent", [("durable.run work", [ran("after")]), ran("last")]),
    ]
    assert links_by_kind(works[1]) == {
        "origin": span_id(parents[0]),
        "previous": span_id(works[0]),
    }
    assert links_by_kind(parents[1])["previous"] == span_id(parents[0])


async def test_code_that_goes_on_by_itself_has_a_span_again(url: str, clock: Clock) -> None:
    spans = Spans()
    async with Process(url, spans) as process:
        await process.begin(process.impatient)
        await is_suspended(spans, name="impatient")
        process.woken.set()
        await result_of(process, "w")

    assert spans.trees()[1] == ("durable.run impatient", [ran("woken")])
    assert outcomes(runs(spans, "impatient")) == ["SUSPENDED", "SUCCESS"]


async def test_a_sleep_that_is_cancelled_is_over(url: str, clock: Clock) -> None:
    spans = Spans()
    async with Process(url, spans) as process:
        await process.begin(process.cancelling)
        await is_suspended(spans, name="cancelling")
        process.woken.set()
        await result_of(process, "w")

    assert spans.trees()[1] == ("durable.run cancelling", [("own", [])])


async def test_who_is_about_to_be_woken_is_not_suspended(url: str) -> None:
    spans = Spans()
    async with Process(url, spans) as process:
        await process.first()

    assert spans.trees() == [("durable.run first", [ran("0"), ran("1"), ran("last")])]
    assert outcomes(runs(spans, "first")) == ["SUCCESS"]


@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_stop_during_a_sleep_makes_no_span(url: str, clock: Clock, is_killed: bool) -> None:
    first, second = Spans(), Spans()
    process = Process(url, first)
    await process.engine.start()
    await process.begin(process.work)
    await is_suspended(first)
    await (kill(process) if is_killed else process.engine.stop())
    clock.end_sleeps()

    async with Process(url, second) as process:
        await result_of(process, "w")

    (suspended,), (resumed,) = runs(first), runs(second)
    assert second.trees() == [("durable.run work", [ran("after")])]
    assert links_by_kind(resumed)["previous"] == span_id(suspended)
    assert (resumed.attributes or {})["durable.run"] == 2


async def test_the_row_names_the_span_in_which_a_run_went_on(url: str, clock: Clock) -> None:
    spans = Spans()
    async with Process(url, spans) as process:
        await process.begin(process.work)
        await is_suspended(spans)
        assert await last_span(url) == traceparent(runs(spans)[0])
        clock.end_sleeps()
        await result_of(process, "w")

    assert await last_span(url) == traceparent(runs(spans)[1])


async def test_a_request_keeps_its_span_and_its_workflow_does_not(url: str, clock: Clock) -> None:
    spans = Spans()
    process = Process(url, spans)

    async def handle(scope, receive, send) -> None:
        await process.work()
        await answer(send)

    app = process.wrap(handle)
    async with process:
        request = asyncio.ensure_future(exchange(app, http_scope("POST")))
        await is_suspended(spans)
        clock.end_sleeps()
        await request

    server, (first, second) = spans.take("POST"), runs(spans)
    assert spans.trees() == [
        ("POST", [("durable.run work", [ran("before")])]),
        ("durable.run work", [ran("after")]),
    ]
    assert links_by_kind(second) == {"origin": span_id(server), "previous": span_id(first)}


async def test_what_is_not_sampled_is_not_sampled_after_a_sleep_either(
    url: str, clock: Clock
) -> None:
    spans = Spans(ALWAYS_OFF)
    async with Process(url, spans) as process:
        await process.begin(process.work)
        clock.end_sleeps()
        await result_of(process, "w")

    assert spans.ended == []
    assert await last_span(url) is None


async def test_the_current_span_is_the_one_that_is_open(url: str, clock: Clock) -> None:
    spans = Spans()
    async with Durable(url, telemetry=spans.telemetry) as durable:

        @durable.workflow(name="work")
        async def work() -> None:
            span = durable.span
            await durable.sleep(LONG_SECONDS)
            assert durable.span is span
            span.set_attribute("order", 7)

        running = asyncio.ensure_future(work())
        await is_suspended(spans)
        clock.end_sleeps()
        await running

    assert [(span.attributes or {}).get("order") for span in runs(spans)] == [None, 7]


async def test_the_duration_of_a_run_leaves_its_suspensions_out(url: str, clock: Clock) -> None:
    figures = Figures()
    async with Durable(url, telemetry=figures.telemetry) as durable:

        @durable.workflow(name="work")
        async def work() -> None:
            await durable.sleep(LONG_SECONDS)

        loop = asyncio.get_running_loop()
        began = loop.time()
        running = asyncio.ensure_future(work())
        await until(lambda: loop.time() - began > 0.5)
        clock.end_sleeps()
        await running

    ((_, point),) = figures.points("durable.run.duration")
    assert dict(point.attributes) == {
        "durable.workflow.name": "work",
        "durable.outcome": "SUCCESS",
    }
    assert point.count == 1
    assert 0 < point.sum < 0.5


async def last_span(url: str) -> object:
    (found,) = await row_of(url, "w", "last_span")
    return found


def traceparent(span: ReadableSpan) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
