"""Requests that are one transaction: claim, rows and response are one commit, or none is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa
from support.asgi import Exchange, answer, exchange, keyed
from support.databases.postgres import PostgresServer
from support.databases.statement_log import StatementLog, logging_statements
from support.executors import kill, query, storage_of
from support.interruption import Gate
from support.telemetry.spans import Spans, span_id

from asgi_durable import (
    Durable,
    DurableUsageError,
    IdempotencyPolicy,
    StorageUnavailableError,
    Telemetry,
)
from asgi_durable.storage.transaction_port import RequestTransaction

pytestmark = pytest.mark.anyio

INSERT = sa.text("INSERT INTO sales VALUES ('sold')")


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


@pytest.fixture(params=["async", "def"])
def kind(request: pytest.FixtureRequest, url: str) -> str:
    if request.param == "def" and urlsplit(url).scheme == "postgresql":
        pytest.importorskip("psycopg")
    kind: str = request.param
    return kind


class Till:
    """An application in one process that sells by one transaction.

    Args:
        url: The database; several tills may share it.
        kind: Whether the transaction is ``async`` or a ``def`` function.
        telemetry: Gets the spans.
        options: More options of the policy.

    Attributes:
        calls: How often the transaction was called.
        within: Called in the async transaction.
        after: Called between the transaction and the response.
        status: The response's status.
        pieces: The chunks of the response's body.
    """

    def __init__(
        self,
        url: str,
        kind: str = "async",
        *,
        telemetry: Telemetry | None = None,
        **options: Any,
    ) -> None:
        policy = IdempotencyPolicy(single_transaction=True, **options)
        self.durable = durable = Durable(
            url, idempotency=policy, drain_timeout=0.0, telemetry=telemetry
        )
        self.app = durable.wrap(self._serve)
        self.calls = 0
        self.within: Callable[[], Awaitable[object]] | None = None
        self.after: Callable[[], Awaitable[object]] | None = None
        self.status = 201
        self.pieces: list[bytes] = []
        self.content_type = b"application/json"

        @durable.transaction(name="sell")
        async def sell() -> dict[str, int]:
            self.calls += 1
            await durable.session.execute(INSERT)
            if self.within is not None:
                await self.within()
            return {"number": self.calls}

        @durable.transaction(name="sell in thread")
        def sell_in_thread() -> dict[str, int]:
            self.calls += 1
            durable.blocking.session.execute(INSERT)
            return {"number": self.calls}

        self.sell: Any = sell if kind == "async" else sell_in_thread

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Till]:
        """Serve until the end of the block, with a table for the sales."""
        async with self.durable:
            storage = storage_of(self.durable)
            async with storage.transaction(None) as transaction:
                create = "CREATE TABLE IF NOT EXISTS sales (what TEXT)"
                await transaction.session.execute(sa.text(create))
            yield self

    async def post(self, key: str = "k", **headers: str) -> Exchange:
        """Send the request."""
        return await exchange(self.app, keyed(key, headers=headers.items()), b"{}")

    async def rows(self) -> tuple[int, int, int]:
        """Return how many sales, workflows and steps there are."""
        tables = ("sales", "asgi_durable_workflows", "asgi_durable_steps")
        counts = [
            await query(self.durable.url, f"SELECT count(*) FROM {table}") for table in tables
        ]
        sales, workflows, steps = (count[0][0] for count in counts)
        return sales, workflows, steps

    async def _serve(self, scope, receive, send) -> None:
        sold = await self.durable.run_step(self.sell)
        if self.after is not None:
            await self.after()
        body = json.dumps(sold).encode()
        if not self.pieces:
            await answer(send, body, status=self.status)
            return
        headers = [(b"content-type", self.content_type)]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        for piece in self.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": body})


async def test_a_retry_gets_the_response_and_nothing_is_done_twice(url: str, kind: str) -> None:
    async with Till(url, kind).opened() as till:
        first, retry = [await till.post() for _ in range(2)]

        assert await till.rows() == (1, 1, 0)
    assert (first.status, first.body) == (retry.status, retry.body) == (201, b'{"number": 1}')
    assert retry.headers("idempotent-replayed") == ["true"]
    assert till.calls == 1


async def test_nothing_is_there_before_the_response_is(url: str, kind: str) -> None:
    seen = []
    async with Till(url, kind).opened() as till:

        async def look() -> None:
            seen.append(await till.rows())

        till.after = look
        await till.post()

        assert seen == [(0, 0, 0)]
        assert await till.rows() == (1, 1, 0)


@pytest.mark.needs_sessions("where nothing is prepared each statement has a BEGIN and a COMMIT")
@pytest.mark.parametrize("kind_there", ["async", "def"])
async def test_on_postgres_claim_rows_and_response_are_one_commit(
    own_postgres: PostgresServer, own_postgres_url: str, kind_there: str
) -> None:
    if kind_there == "def":
        pytest.importorskip("psycopg")
    async with Till(logging_statements(own_postgres_url), kind_there).opened() as till:
        await till.post("before")
        log = StatementLog(own_postgres)
        await till.post()
        executed = [text.rstrip(";") for text in log.new_statements()]

    begin, end = executed.index("BEGIN"), executed.index("COMMIT")
    inside, outside = executed[begin + 1 : end], executed[:begin] + executed[end + 1 :]
    for table in ("sales", "asgi_durable_workflows", "asgi_durable_responses"):
        assert [text for text in inside if re.search(rf"INSERT INTO \S*\b{table}\b", text)], inside
    # The heartbeat has statements of its own, once a second whatever is done.
    assert not [text for text in outside if "INSERT" in text or "COMMIT" in text], outside


async def test_a_failure_leaves_nothing_and_the_retry_begins_anew(url: str, kind: str) -> None:
    async with Till(url, kind).opened() as till:

        async def fail() -> None:
            raise RuntimeError("after the transaction")

        till.after = fail
        with pytest.raises(RuntimeError):
            await till.post()
        assert await till.rows() == (0, 0, 0)
        till.after = None
        retry = await till.post()

        assert (retry.status, retry.body) == (201, b'{"number": 2}')
        assert await till.rows() == (1, 1, 0)


@pytest.mark.parametrize(("status", "sales"), [(201, 1), (409, 1), (503, 0), (429, 0)])
async def test_rows_are_there_if_the_response_is_stored(url: str, status: int, sales: int) -> None:
    async with Till(url).opened() as till:
        till.status = status
        first, retry = [await till.post() for _ in range(2)]

        assert (first.status, retry.status) == (status, status)
        assert await till.rows() == (sales, sales, 0)
        assert till.calls == (1 if sales else 2)


@pytest.mark.parametrize(("store_4xx", "times"), [(True, 1), (False, 2)])
async def test_an_error_of_the_transaction_may_be_handled(
    url: str, store_4xx: bool, times: int
) -> None:
    policy = IdempotencyPolicy(single_transaction=True, store_4xx=store_4xx)
    durable = Durable(url, idempotency=policy)
    calls = []

    @durable.transaction
    async def refuse() -> None:
        calls.append(1)
        await durable.session.execute(sa.text("CREATE TABLE made (x INT)"))
        raise ValueError("sold out")

    async def handle(scope, receive, send) -> None:
        try:
            await refuse()
        except ValueError as error:
            await answer(send, str(error).encode(), status=409)

    app = durable.wrap(handle)
    async with durable:
        first, retry = [await exchange(app, keyed(), b"{}") for _ in range(2)]

        assert (first.status, first.body) == (retry.status, retry.body) == (409, b"sold out")
        # If nothing is committed, the next attempt decides, as everywhere.
        assert len(calls) == times
        async with storage_of(durable).transaction(None) as transaction:
            # It was rolled back, and can be made.
            await transaction.session.execute(sa.text("CREATE TABLE made (x INT)"))


async def test_a_response_without_a_transaction_is_stored_as_any_other(url: str) -> None:
    durable = Durable(url, idempotency=IdempotencyPolicy(single_transaction=True))
    calls = []

    async def handle(scope, receive, send) -> None:
        calls.append(1)
        await answer(send, b"nothing to do")

    app = durable.wrap(handle)
    async with durable:
        first, retry = [await exchange(app, keyed(), b"{}") for _ in range(2)]

    assert first.body == retry.body == b"nothing to do"
    assert calls == [1]


@pytest.mark.parametrize("second", ["transaction", "step", "workflow", "sleep", "started"])
async def test_a_second_durable_call_is_a_mistake_that_does_nothing(
    url: str, second: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Till(url).opened() as till:
        durable = till.durable

        @durable.step
        async def step() -> None: ...

        @durable.workflow
        async def workflow() -> None: ...

        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "transaction": lambda: durable.run_step(till.sell),
            "step": step,
            "workflow": workflow,
            "sleep": lambda: durable.sleep(0),
            "started": lambda: durable.start_workflow(workflow),
        }
        till.after = calls[second]

        refused = await till.post()

        assert refused.status == 500
        assert "'POST /' is a single transaction" in caplog.text
        assert await till.rows() == (0, 0, 0)


async def test_background_workflows_start_with_the_response(url: str, kind: str) -> None:
    async with Till(url, kind).opened() as till:
        ran = asyncio.Event()

        @till.durable.workflow
        async def tell() -> None:
            ran.set()

        async def later() -> None:
            await till.durable.background(tell)
            assert not ran.is_set()

        till.after = later
        await till.post()
        await ran.wait()

        sales, workflows, _ = await till.rows()
        assert (sales, workflows) == (1, 2)


async def test_duplicates_of_one_process_share_one_execution(url: str, kind: str) -> None:
    async with Till(url, kind).opened() as till:
        answers = await asyncio.gather(*(till.post() for _ in range(20)))

        assert {(a.status, a.body) for a in answers} == {(201, b'{"number": 1}')}
        assert await till.rows() == (1, 1, 0)


async def test_duplicates_of_several_processes_share_one_execution(url: str, kind: str) -> None:
    async with Till(url, kind).opened() as till, Till(url, kind).opened() as other:
        posts = [one.post(f"k{n}") for n in range(10) for one in (till, other)]
        answers = await asyncio.gather(*posts)

        assert {a.status for a in answers} == {201}
        pairs = zip(answers[::2], answers[1::2], strict=True)
        assert all(one.body == another.body for one, another in pairs)
        assert await till.rows() == (10, 10, 0)


async def test_a_duplicate_elsewhere_waits_no_longer_than_it_may(url: str, kind: str) -> None:
    if urlsplit(url).scheme != "postgresql":
        pytest.skip("whoever writes waits for whoever else writes")
    gate = Gate()
    async with (
        Till(url, kind).opened() as till,
        Till(url, kind, max_wait=0.05).opened() as other,
    ):
        till.after = gate.wait
        first = asyncio.create_task(till.post())
        await gate.reached.wait()
        duplicate = await other.post()
        gate.open()

        assert (await first).status == 201
        assert (duplicate.status, json.loads(duplicate.body)["code"]) == (409, "IN_PROGRESS")
        assert (await other.post()).headers("idempotent-replayed") == ["true"]
        assert await till.rows() == (1, 1, 0)


async def test_a_stop_takes_back_a_request_without_a_response(url: str, kind: str) -> None:
    gate = Gate()
    till = Till(url, kind)
    async with till.opened():
        till.after = gate.wait
        post = asyncio.create_task(till.post())
        await gate.reached.wait()
    assert (await post).status == 503

    async with Till(url, kind).opened() as other:
        assert await other.rows() == (0, 0, 0)
        assert (await other.post()).status == 201
        assert await other.rows() == (1, 1, 0)


async def test_what_is_done_about_a_stop_is_not_committed(url: str, kind: str) -> None:
    gate = Gate()
    till = Till(url, kind)

    async def answers_all_the_same() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await gate.wait()

    async with till.opened():
        till.after = answers_all_the_same
        post = asyncio.create_task(till.post())
        await gate.reached.wait()
    assert (await post).status == 503

    async with Till(url, kind).opened() as other:
        assert await other.rows() == (0, 0, 0)


def test_what_is_done_about_the_end_of_the_event_loop_is_not_committed(url: str) -> None:
    async def leave_in_the_midst() -> None:
        till, gate = Till(url), Gate()

        async def answers_all_the_same() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await gate.wait()

        till.after = answers_all_the_same
        # It is not stopped before the loop ends.
        await till.durable.__aenter__()
        post = asyncio.create_task(till.post())
        await gate.reached.wait()
        kept.append((till, post))

    async def look() -> tuple[int, int, int]:
        async with Till(url).opened() as other:
            return await other.rows()

    kept: list[object] = []
    asyncio.run(look())
    asyncio.run(leave_in_the_midst())
    assert asyncio.run(look()) == (0, 0, 0)


async def test_a_client_that_leaves_may_take_it_back(url: str, kind: str) -> None:
    gate = Gate()
    async with Till(url, kind, on_disconnect="cancel").opened() as till:
        till.after = gate.wait
        leaving = Exchange(b"{}")
        post = asyncio.create_task(till.app(keyed(), leaving.receive, leaving.send))
        await gate.reached.wait()
        leaving.disconnected.set()
        await post

        assert await till.rows() == (0, 0, 0)
        till.after = None
        assert (await till.post()).status == 201


async def test_a_thread_that_comes_late_holds_nothing(url: str) -> None:
    if urlsplit(url).scheme == "postgresql":
        pytest.importorskip("psycopg")
    begun, may_end = threading.Event(), threading.Event()
    durable = Durable(
        url,
        idempotency=IdempotencyPolicy(single_transaction=True, on_disconnect="cancel"),
        drain_timeout=0.0,
    )

    @durable.transaction
    def sell() -> None:
        begun.set()
        may_end.wait()

    async def handle(scope, receive, send) -> None:
        await durable.run_step(sell)
        await answer(send)

    app = durable.wrap(handle)
    async with durable:
        leaving = Exchange(b"{}")
        post = asyncio.create_task(app(keyed(), leaving.receive, leaving.send))
        await asyncio.to_thread(begun.wait)
        leaving.disconnected.set()
        await post
        may_end.set()
        # On SQLite it holds the write lock until it is rolled back.
        assert (await exchange(app, keyed(), b"{}")).status == 200

        assert await query(url, "SELECT state FROM asgi_durable_workflows") == [("SUCCESS",)]


@pytest.mark.parametrize("content_type", [b"text/plain", b"text/event-stream"])
async def test_a_response_is_not_shown_before_it_is_whole(url: str, content_type: bytes) -> None:
    is_stream = content_type == b"text/event-stream"
    async with Till(url, max_response_body=8, stream_after=0.0).opened() as till:
        till.pieces, till.content_type = ([b"a", b"b"] if is_stream else [b"x" * 9]), content_type
        refused = Exchange(b"{}")
        with pytest.raises(DurableUsageError, match="in chunks"):
            await till.app(keyed(), refused.receive, refused.send)

        assert b"x" not in refused.body
        assert b"a" not in refused.body
        assert await till.rows() == (0, 0, 0)


async def test_chunks_are_held_for_as_long_as_it_takes(url: str) -> None:
    async with Till(url, stream_after=0.0).opened() as till:
        till.pieces = [b"a", b"b"]
        first, retry = [await till.post() for _ in range(2)]

        assert first.body == retry.body == b'ab{"number": 1}'
        assert await till.rows() == (1, 1, 0)


async def test_a_failure_may_set_its_retry_time(url: str) -> None:
    async with Till(url, retry_delay=60.0).opened() as till:
        till.status = 500
        await till.post()
        soon = await till.post()

        assert (soon.status, json.loads(soon.body)["code"]) == (503, "RETRY_LATER")
        assert await till.rows() == (0, 1, 0)
        assert till.calls == 1


async def test_a_request_that_has_a_row_continues_as_any_other(url: str) -> None:
    async with Till(url, retry_delay=0.000001).opened() as till:
        till.status = 500
        await till.post()
        till.status = 201
        retry, replay = [await till.post() for _ in range(2)]

        assert retry.body == replay.body == b'{"number": 2}'
        # Its transaction is recorded by itself.
        assert await till.rows() == (1, 1, 1)


async def test_a_client_gets_no_202(url: str) -> None:
    gate = Gate()
    async with Till(url).opened() as till:
        till.after = gate.wait
        post = asyncio.create_task(till.post(Prefer="respond-async, wait=0"))
        await gate.reached.wait()
        gate.open()

        assert (await post).status == 201


def lose_connection(till: Till, patch: pytest.MonkeyPatch, *, is_committed: bool) -> None:
    """Let the connection of each transaction be lost with its commit."""
    storage = storage_of(till.durable)
    original = storage.request_transaction

    @asynccontextmanager
    async def losing(*args: Any, **kwargs: Any) -> AsyncIterator[RequestTransaction]:
        async with original(*args, **kwargs) as transaction:
            yield transaction
            if not is_committed:
                raise StorageUnavailableError("the connection was lost")
        raise StorageUnavailableError("the connection was lost")

    patch.setattr(storage, "request_transaction", losing)


async def test_a_commit_whose_response_got_lost_is_noticed(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Till(url).opened() as till:
        lose_connection(till, monkeypatch, is_committed=True)

        assert (await till.post()).status == 201
        assert await till.rows() == (1, 1, 0)


async def test_a_commit_that_fails_is_reported(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Till(url).opened() as till:
        lose_connection(till, monkeypatch, is_committed=False)
        lost = await till.post()
        monkeypatch.undo()

        assert (lost.status, json.loads(lost.body)["code"]) == (503, "OUTCOME_UNKNOWN")
        assert await till.rows() == (0, 0, 0)
        assert (await till.post()).status == 201


async def test_a_commit_behind_the_sessions_back_leaves_a_request_that_can_be_retried(
    url: str,
) -> None:
    async with Till(url).opened() as till, Till(url).opened() as other:

        async def commit() -> None:
            await till.durable.session.execute(sa.text("COMMIT"))

        till.within = commit
        with contextlib.suppress(sa.exc.SQLAlchemyError):
            assert (await till.post()).status == 500

        assert (await other.post()).status == 201


async def test_a_process_that_was_declared_dead_continues_as_another(url: str) -> None:
    async with Till(url).opened() as till, Till(url).opened() as other:
        executor = till.durable.engine.running().services.executor
        old_id = executor.id
        await storage_of(other.durable).retire(old_id)

        assert (await till.post()).status == 201
        assert executor.id != old_id
        # It has waited for that, and not tried again and again.
        assert till.calls <= 2
        assert await till.rows() == (1, 1, 0)


async def test_a_process_that_dies_leaves_nothing(url: str) -> None:
    till, gate = Till(url), Gate()
    async with Till(url).opened() as other:
        await till.durable.__aenter__()
        till.after = gate.wait
        post = asyncio.create_task(till.post())
        await gate.reached.wait()
        await kill(till.durable)
        post.cancel()
        await asyncio.gather(post, return_exceptions=True)

        # Nobody waits for the end of a lease.
        assert (await other.post()).status == 201
        assert await other.rows() == (1, 1, 0)


@pytest.mark.parametrize(
    "option",
    [
        {"max_attempts": 3},
        {"async_after": 1.0},
        {"on_store_error": "bypass"},
        {"recover": "server"},
        {"oversize": "hash"},
        {"stream": "record"},
    ],
    ids=str,
)
def test_what_needs_more_than_one_commit_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(DurableUsageError, match="single_transaction"):
        IdempotencyPolicy(single_transaction=True, **option)


@pytest.mark.parametrize("where", ["idempotency", "idempotency_routes"])
def test_two_databases_have_no_single_transaction(where: str) -> None:
    policy = IdempotencyPolicy(single_transaction=True)
    options: dict[str, Any] = {where: policy if where == "idempotency" else {"/x": policy}}

    with pytest.raises(DurableUsageError, match="application's database"):
        Durable("sqlite:///a.db", application_url="sqlite:///b.db", **options)


async def test_its_span_is_that_of_a_transaction_below_the_request(url: str) -> None:
    spans = Spans()
    till = Till(url, telemetry=spans.telemetry)
    failures = [StorageUnavailableError("given up for another one")]

    async def is_given_up_once() -> None:
        if failures:
            raise failures.pop()

    async with till.opened():
        till.within = is_given_up_once
        sold, replay = [await till.post() for _ in range(2)]

    assert (sold.status, replay.status) == (201, 201)
    request, step, again = spans.ended
    attributes = step.attributes or {}
    assert (request.name, step.name, again.name) == ("POST", "durable.step sell", "POST")
    assert step.parent is not None
    assert step.parent.span_id == span_id(request)
    assert attributes["durable.step.kind"] == "transaction"
    assert attributes["durable.step.attempt"] == 2
    outcomes = [(span.attributes or {})["idempotency.outcome"] for span in (request, again)]
    assert outcomes == ["executed", "replayed"]
    assert [link.context.span_id for link in again.links] == [span_id(request)]
