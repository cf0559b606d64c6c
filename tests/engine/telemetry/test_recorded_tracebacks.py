"""An error that is read from the log shows the application's lines that raised it."""

from __future__ import annotations

import traceback

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from support.interruption import Gate

from asgi_durable import Durable, DurableError
from asgi_durable_fastapi import install

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


def charge() -> None:
    raise LookupError("no card")


async def test_a_replayed_error_shows_where_a_step_or_a_transaction_raised_it(url: str) -> None:
    gate = Gate()
    durable = Durable(url, drain_timeout=0.0)
    seen: list[str] = []

    @durable.step(retry=None)
    async def pay() -> None:
        charge()

    @durable.transaction
    async def book() -> None:
        charge()

    @durable.step
    async def wait() -> None:
        await gate.wait()

    @durable.workflow
    async def work() -> None:
        for failing in (pay, book):
            try:
                await failing()
            except LookupError as error:
                seen.append("".join(traceback.format_exception(error)))
        await wait()

    async with durable:
        await durable.options(workflow_id="w").start_workflow(work)
        await gate.reached.wait()
    gate.open()
    async with durable:
        await (await durable.retrieve_workflow("w")).get_result()

    assert len(seen) == 4
    for text, caller in zip(seen, ("in pay", "in book") * 2, strict=True):
        assert text.count("in charge\n") == text.count(caller) == 1, text
    assert ["Recorded traceback" in text for text in seen] == [False, False, True, True]


async def test_who_waits_for_a_workflow_is_shown_the_whole_way_to_its_error(
    durable: Durable,
) -> None:
    @durable.step(retry=None)
    async def pay() -> None:
        charge()

    @durable.workflow
    async def work() -> None:
        await pay()

    for _ in range(2):
        with pytest.raises(LookupError) as caught:
            await durable.options(workflow_id="w").run_workflow(work)
        text = "".join(traceback.format_exception(caught.value))
        assert [text.count(f"in {name}\n") for name in ("work", "pay", "charge")] == [1, 1, 1]


async def test_no_client_is_shown_a_recorded_traceback(url: str) -> None:
    app, durable = FastAPI(), Durable(url)
    install(app, durable)

    @app.post("/pay")
    @durable.workflow
    async def pay() -> None:
        raise DurableError("no card", code="NO_CARD", status_code=402)

    @app.post("/charge")
    @durable.workflow
    async def fail() -> None:
        charge()

    with TestClient(app, raise_server_exceptions=False) as client:
        for path, status in (("/pay", 402), ("/charge", 500)):
            answer = client.post(path, headers={"Idempotency-Key": path})
            assert answer.status_code == status
            assert "raceback" not in answer.text
            assert __file__ not in answer.text
