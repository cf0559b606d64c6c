"""What the log filter and the structlog processor add, and what they drop."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog
from support.asgi import answer, exchange, keyed

from asgi_durable import Durable, DurableLogFilter, DurableLogProcessor

pytestmark = pytest.mark.anyio

logger = logging.getLogger("shop")


class Handler(logging.Handler):
    """Keeps records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def handler() -> Iterator[Handler]:
    handler = Handler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)


def fields(record: logging.LogRecord) -> tuple[object, ...]:
    return tuple(vars(record)[name] for name in ("request_id", "workflow_id", "step", "trace_id"))


async def test_a_line_says_in_which_request_workflow_and_step_it_was_written(
    durable: Durable, handler: Handler
) -> None:
    @durable.step(name="reserve")
    async def reserve() -> None:
        logger.info("in a step")

    async def app(_scope, _receive, send) -> None:
        logger.info("in a request")
        await reserve()
        await answer(send, b"")

    handler.addFilter(DurableLogFilter())
    logger.info("outside")
    result = await exchange(durable.wrap(app), keyed())

    (request_id,), (workflow_id,) = result.headers("x-request-id"), result.headers("durable-id")
    assert [fields(record) for record in handler.records] == [
        (None, None, None, None),
        (request_id, workflow_id, None, None),
        (request_id, workflow_id, "reserve", None),
    ]


@pytest.mark.parametrize("drops", [True, False])
async def test_lines_of_a_replay_are_dropped_where_that_is_asked_for(
    durable: Durable, handler: Handler, *, drops: bool
) -> None:
    fails = True

    @durable.step(name="first")
    async def first() -> None:
        """Be recorded."""

    async def app(_scope, _receive, send) -> None:
        logger.info("before")
        await first()
        logger.info("after")
        if fails:
            raise ConnectionError
        await answer(send, b"")

    handler.addFilter(DurableLogFilter(drop_replayed=drops))
    wrapped = durable.wrap(app)
    with pytest.raises(ConnectionError):
        await exchange(wrapped, keyed())
    fails = False
    handler.records.clear()
    await exchange(wrapped, keyed())

    assert [record.getMessage() for record in handler.records] == ["before", "after"][drops:]


async def test_a_structlog_event_has_the_same_fields(durable: Durable) -> None:
    events: list[dict[str, object]] = []

    def keep(_logger, _name, event):
        events.append(dict(event))
        raise structlog.DropEvent

    log = structlog.wrap_logger(None, processors=[DurableLogProcessor(), keep])

    async def app(_scope, _receive, send) -> None:
        log.info("in a request", step="own")
        await answer(send, b"")

    result = await exchange(durable.wrap(app), keyed())

    (request_id,), (workflow_id,) = result.headers("x-request-id"), result.headers("durable-id")
    assert events == [
        {
            "event": "in a request",
            "step": "own",
            "request_id": request_id,
            "workflow_id": workflow_id,
        }
    ]
