"""The log of a keyed request: a line for each change of its state."""

from __future__ import annotations

import logging

import pytest
from support.asgi import answer, exchange, keyed

from asgi_durable import Durable

pytestmark = pytest.mark.anyio


async def test_each_change_of_a_requests_state_is_a_line(
    durable: Durable, caplog: pytest.LogCaptureFixture
) -> None:
    statuses = iter([500, 201])

    async def app(_scope, _receive, send) -> None:
        await answer(send, b"", status=next(statuses))

    wrapped = durable.wrap(app)
    with caplog.at_level(logging.DEBUG, "asgi_durable"):
        results = [await exchange(wrapped, keyed()) for _ in range(3)]
        reused = await exchange(wrapped, keyed(), b"other")

    lines = [record.getMessage() for record in caplog.records if "Request " in record.getMessage()]
    (workflow_id,) = results[0].headers("durable-id")
    assert [line.rpartition(": ")[2] for line in lines] == [
        "claimed",
        "left for its retry",
        "claimed",
        "responded 201",
        "asked for again, Finished",
        "asked for again, KeyReused",
    ]
    assert reused.status == 422
    assert all(line.startswith(f"Request {workflow_id}") for line in lines)
    assert ["attempt 1," in line for line in lines[:4]] == [True, True, False, False]
