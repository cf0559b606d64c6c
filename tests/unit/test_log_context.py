"""Log lines say where they were written; those of a replay can be left out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest
import structlog
from structlog.testing import CapturingLogger
from support.asgi import answer, exchange, http_scope, keyed
from support.executors import query, result_of, until
from support.interruption import Gate
from support.telemetry.spans import Spans

from asgi_durable import Durable, DurableLogFilter, DurableLogProcessor

pytestmark = pytest.mark.anyio

FORMAT = "%(message)s|%(request_id)s|%(workflow_id)s|%(step)s|%(trace_id)s"
LOGGER = logging.getLogger("shop")


class Lines(logging.Handler):
    """Keeps formatted lines."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(FORMAT))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Return the records of the logger ``shop``, with their context."""
    handler = Lines()
    handler.addFilter(DurableLogFilter())
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    yield handler
    LOGGER.removeHandler(handler)
    LOGGER.setLevel(logging.NOTSET)


async def test_lines_name_their_request_workflow_step_and_trace(url: str, lines: Lines) -> None:
    spans = Spans()
    durable = Durable(url, telemetry=spans.telemetry)

    @durable.step(name="charge")
    async def charge() -> None:
        LOGGER.info("step")

    @durable.workflow
    async def pay() -> None:
        LOGGER.info("workflow")
        await charge()

    async def handle(scope, receive, send) -> None:
        LOGGER.info("handler")
        await durable.options(workflow_id="w").run_workflow(pay)
        await answer(send)

    async with durable:
        scope = http_scope(headers=[("X-Request-ID", "r1")])
        await exchange(durable.wrap(handle), scope)
    LOGGER.info("outside")

    trace_id = f"{spans.take('GET').get_span_context().trace_id:032x}"
    assert lines.lines == [
        f"handler|r1|None|None|{trace_id}",
        f"workflow|r1|w|None|{trace_id}",
        f"step|r1|w|charge|{trace_id}",
        "outside|None|None|None|None",
    ]


async def test_fields_that_a_record_has_already_are_kept(lines: Lines) -> None:
    LOGGER.info("job", extra={"workflow_id": "theirs"})

    assert lines.lines == ["job|None|theirs|None|None"]


async def test_what_a_workflow_logs_again_while_it_is_replayed_can_be_dropped(
    url: str, lines: Lines
) -> None:
    lines.addFilter(DurableLogFilter(drop_replayed=True))
    gate = Gate()
    durable = Durable(url, drain_timeout=0.0)

    @durable.step(name="one")
    async def one(number: int) -> None:
        LOGGER.info("step %s", number)
        if number == 2:
            await gate.wait()

    @durable.workflow
    async def work() -> None:
        LOGGER.info("begins")
        await one(1)
        LOGGER.info("goes on")
        await one(2)
        LOGGER.info("ends")

    async with durable:
        await durable.options(workflow_id="w").start_workflow(work)
        await gate.reached.wait()
    gate.open()
    first = [line.partition("|")[0] for line in lines.lines]
    lines.lines.clear()
    async with durable:
        await (await durable.retrieve_workflow("w")).get_result()

    assert first == ["begins", "step 1", "goes on", "step 2"]
    # After the last recorded step nobody knows how far it had come.
    assert [line.partition("|")[0] for line in lines.lines] == ["goes on", "step 2", "ends"]


async def test_what_a_step_logs_that_runs_during_a_replay_is_kept(url: str, lines: Lines) -> None:
    lines.addFilter(DurableLogFilter(drop_replayed=True))
    gate = Gate()
    durable = Durable(url, drain_timeout=0.0)

    @durable.step(name="waiting")
    async def waiting() -> None:
        LOGGER.info("waiting")
        await gate.wait()

    @durable.step(name="quick")
    async def quick() -> None:
        return None

    @durable.workflow
    async def work() -> None:
        gate.reached.clear()
        task = asyncio.create_task(waiting())
        await gate.reached.wait()
        await quick()
        # The last record that there is, so both are durable.
        await quick()
        await task

    async with durable:
        await durable.options(workflow_id="w").start_workflow(work)
        await until(lambda: has_steps(url, 2))
    lines.lines.clear()
    gate.open()
    async with durable:
        await result_of(durable, "w")

    assert [line.partition("|")[0] for line in lines.lines] == ["waiting"]


async def has_steps(url: str, count: int) -> bool:
    return await query(url, "SELECT count(*) FROM asgi_durable_steps") == [(count,)]


async def test_lines_name_the_execution_the_span_and_whose_keyed_request_it_is(
    url: str, lines: Lines
) -> None:
    lines.setFormatter(
        logging.Formatter("%(message)s|%(run)s|%(principal_hash)s|%(trace_id)s|%(span_id)s")
    )
    spans = Spans()
    durable = Durable(url, telemetry=spans.telemetry)
    fails = True

    @durable.workflow(name="pay")
    async def pay() -> None:
        LOGGER.info("workflow")

    async def handle(scope, receive, send) -> None:
        LOGGER.info("handler")
        if fails:
            raise ConnectionError
        await pay()
        await answer(send)

    async with durable:
        app = durable.wrap(handle)
        with pytest.raises(ConnectionError):
            await exchange(app, keyed(headers=[("Authorization", "secret")]))
        fails = False
        spans.clear()
        result = await exchange(app, keyed(headers=[("Authorization", "secret")]))

    (durable_id,) = result.headers("durable-id")
    request, run = (spans.take(name).get_span_context() for name in ("POST", "durable.run pay"))
    trace_id = f"{request.trace_id:032x}"
    assert lines.lines[0].split("|")[:3] == ["handler", "1", durable_id[:16]]
    assert lines.lines[1:] == [
        f"handler|2|{durable_id[:16]}|{trace_id}|{request.span_id:016x}",
        f"workflow|1|{durable_id[:16]}|{trace_id}|{run.span_id:016x}",
    ]


async def test_a_workflow_of_no_keyed_request_has_no_principal(
    durable: Durable, lines: Lines
) -> None:
    lines.setFormatter(logging.Formatter("%(run)s|%(principal_hash)s|%(span_id)s"))

    @durable.workflow
    async def work() -> None:
        LOGGER.info("workflow")

    await durable.options(workflow_id="w").run_workflow(work)
    await work()

    assert lines.lines == ["1|None|None"] * 2


@pytest.mark.parametrize("drops", [True, False])
async def test_what_a_handler_logs_again_in_a_retry_can_be_dropped(
    durable: Durable, lines: Lines, *, drops: bool
) -> None:
    lines.addFilter(DurableLogFilter(drop_replayed=drops))
    fails = True

    @durable.step(name="first")
    async def first() -> None:
        """Be recorded."""

    async def handle(scope, receive, send) -> None:
        LOGGER.info("before")
        await first()
        LOGGER.info("after")
        if fails:
            raise ConnectionError
        await answer(send)

    app = durable.wrap(handle)
    with pytest.raises(ConnectionError):
        await exchange(app, keyed())
    fails = False
    lines.lines.clear()
    await exchange(app, keyed())

    assert [line.partition("|")[0] for line in lines.lines] == ["before", "after"][drops:]


async def test_structlog_events_have_the_same_fields(durable: Durable) -> None:
    kept = CapturingLogger()
    log = structlog.wrap_logger(kept, processors=[DurableLogProcessor(drop_replayed=True)])

    @durable.workflow
    async def work() -> None:
        log.info("hello", step="mine")

    await durable.options(workflow_id="w").run_workflow(work)
    log.info("outside")

    assert [call.kwargs for call in kept.calls] == [
        {"event": "hello", "workflow_id": "w", "run": 1, "step": "mine"},
        {"event": "outside"},
    ]


async def test_structlog_events_of_a_replay_can_be_dropped(url: str) -> None:
    kept = CapturingLogger()
    log = structlog.wrap_logger(kept, processors=[DurableLogProcessor(drop_replayed=True)])
    gate = Gate()
    durable = Durable(url, drain_timeout=0.0)

    @durable.step
    async def one(number: int) -> None:
        if number == 2:
            await gate.wait()

    @durable.workflow
    async def work() -> None:
        log.info("begins")
        await one(1)
        await one(2)

    async with durable:
        await durable.options(workflow_id="w").start_workflow(work)
        await gate.reached.wait()
    gate.open()
    async with durable:
        await (await durable.retrieve_workflow("w")).get_result()

    assert len(kept.calls) == 1
