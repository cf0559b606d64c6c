"""Keys that were claimed before ids were made with a secret, and without a host."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from support.asgi import Exchange, answer, exchange, http_scope, keyed
from support.databases.former_database import create_version_1, execute, finished

from asgi_durable import Durable, IdempotencyPolicy
from asgi_durable.engine.requests.request_ids import former_workflow_id
from asgi_durable.storage.records import WorkflowState

pytestmark = pytest.mark.anyio

# Ids of the key "k", as the former code made them.
ANONYMOUS = "6s3krz3xxsqrzgyxdevyodttva2izdr4egaq36tkp3"
BEARER = "dmygw4ldqquea372tmxb6efmyd2cdykxk5cbixhrwk"
BASIC = "scvry6ogcokisy5bywokzxnamzp5nzdcv6u74zzm4j"
BY_COOKIE = "nliqevuoqxmbqic5ddrgvpwju3rbyga4ini66hfrsa"
OF_ENDPOINT = "nanlddt2b4exgvwyl4h7mjonbe5tmqamq4gutm574k"
BY_USER = "nanlddt2b4exgvwyepjewokpdbd2ukum6knxgqf56y"
BY_PRINCIPAL = "lmufm5p4jbaoapccofqjxquxey3rjkny5ydmyy4dlx"

HOST = ("host", "shop.example")
ADA = ("authorization", "Bearer ada")
GATE = ("authorization", "Basic Z2F0ZTp3YXk=")
COOKIE = ("cookie", "session=s-ada")


class User:
    is_authenticated = True
    identity = "ada"


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


class App:
    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, scope, receive, send) -> None:
        self.calls += 1
        await answer(send, b"a new answer")


@pytest.mark.parametrize(
    ("former", "headers", "options", "more"),
    [
        (ANONYMOUS, [], {}, {}),
        (BEARER, [ADA], {}, {}),
        (BASIC, [GATE], {}, {}),
        (BY_COOKIE, [COOKIE], {"session_cookie": "session"}, {}),
        (BEARER, [ADA, COOKIE], {"session_cookie": "session"}, {}),
        (BY_USER, [COOKIE], {}, {"user": User()}),
        (OF_ENDPOINT, [], {"scope": "endpoint"}, {"user": User()}),
        (BY_PRINCIPAL, [], {"principal": lambda _: "ada"}, {}),
        (ANONYMOUS, [COOKIE], {"anonymous": "share"}, {}),
    ],
)
async def test_a_key_that_was_claimed_under_a_former_id_is_found(
    url: str, former: str, headers, options, more
) -> None:
    await create_version_1(url, finished(former))
    app, idempotency = App(), IdempotencyPolicy(**options)
    async with Durable(url, idempotency=idempotency) as durable:
        served = durable.wrap(app)
        again = await exchange(served, keyed(headers=[HOST, *headers], **more))
        page = http_scope("GET", f"/durable/requests/{former}", [HOST, *headers], **more)
        status = await exchange(served, page)
        fresh = await exchange(served, keyed("other", headers=[HOST, *headers], **more))

    assert (again.status, again.body) == (201, b"a former answer")
    assert again.headers("durable-id") == [former]
    assert again.headers("idempotent-replayed") == ["true"]
    assert (status.status, json.loads(status.body)["state"]) == (303, "DONE")
    assert (fresh.body, app.calls) == (b"a new answer", 1)
    assert fresh.headers("durable-id")[0][:16] != former[:16]


@pytest.mark.parametrize(
    ("former", "headers"),
    [
        (ANONYMOUS, [COOKIE]),
        (BASIC, [GATE, COOKIE]),
        (BY_COOKIE, [("cookie", "session=s-ada; session=s-bob")]),
        (BY_COOKIE, [("cookie", "session=s-ada; session-0=s-bob")]),
        (ANONYMOUS, [("cookie", "session=")]),
        (BY_COOKIE, []),
    ],
)
async def test_a_sender_that_shared_its_scope_gets_no_responses_of_others(
    url: str, former: str, headers
) -> None:
    await create_version_1(url, finished(former))
    app = App()
    async with Durable(url, idempotency=IdempotencyPolicy(session_cookie="session")) as durable:
        served = durable.wrap(app)
        result = await exchange(served, keyed(headers=headers))
        page = http_scope("GET", f"/durable/requests/{former}", headers)
        status = await exchange(served, page)

    assert (result.body, app.calls) == (b"a new answer", 1)
    assert result.headers("durable-id") != [former]
    assert status.status == 404


async def test_work_that_was_interrupted_continues_under_its_former_id(url: str) -> None:
    workflow, response = finished(ANONYMOUS)
    waiting = replace(workflow, state=WorkflowState.PENDING)
    await create_version_1(url, (waiting, replace(response, workflow_id="other")))
    app = App()
    async with Durable(url) as durable:
        served = durable.wrap(app)
        results = [await exchange(served, keyed(headers=[HOST])) for _ in range(2)]

    assert [one.body for one in results] == [b"a new answer"] * 2
    assert [one.headers("durable-id") for one in results] == [[ANONYMOUS]] * 2
    assert app.calls == 1


async def test_another_request_under_a_former_key_is_refused(url: str) -> None:
    await create_version_1(url, finished(ANONYMOUS))
    async with Durable(url) as durable:
        result = await exchange(durable.wrap(App()), keyed(), b"another body")

    assert result.status == 422


@pytest.mark.parametrize(("forgotten_at", "status"), [(1, 200), (2**60, 410)])
async def test_a_former_key_is_free_once_it_is_forgotten(
    url: str, forgotten_at: int, status: int
) -> None:
    expired = finished(ANONYMOUS, expires_at_us=1, forgotten_at_us=forgotten_at)
    await create_version_1(url, expired)
    app = App()
    async with Durable(url) as durable:
        served = durable.wrap(app)
        results: list[Exchange] = [await exchange(served, keyed()) for _ in range(2)]

    assert [one.status for one in results] == [status] * 2
    if status == 200:
        assert app.calls == 1
        assert results[0].headers("durable-id") == results[1].headers("durable-id")
        assert results[0].headers("durable-id") != [ANONYMOUS]


async def test_a_new_database_is_not_searched_for_former_ids(url: str) -> None:
    async with Durable(url) as durable:
        first = await exchange(durable.wrap(App()), keyed())
        (made,) = first.headers("durable-id")
        former = former_workflow_id(b"anonymous", b"k")
        for table in ("workflows", "responses"):
            await execute(
                url,
                f"UPDATE asgi_durable_{table} SET workflow_id = '{former}' "
                f"WHERE workflow_id = '{made}'",
            )
        again = await exchange(durable.wrap(App()), keyed())

    assert former == ANONYMOUS
    assert again.headers("durable-id") == [made]
    assert again.headers("idempotent-replayed") == []


@pytest.mark.parametrize("on_store_error", ["reject", "bypass"])
async def test_nothing_runs_twice_where_the_search_for_a_former_id_fails(
    url: str, on_store_error: Any
) -> None:
    await create_version_1(url, finished(ANONYMOUS))
    app = App()
    policy = IdempotencyPolicy(on_store_error=on_store_error)
    async with Durable(url, idempotency=policy, storage_patience=0.0) as durable:
        served = durable.wrap(app)
        await durable.engine.running().services.storage.close()
        result = await exchange(served, keyed())
    async with Durable(url) as durable:
        again = await exchange(durable.wrap(app), keyed())

    if on_store_error == "reject":
        assert (json.loads(result.body)["error"], app.calls) == ("StorageError", 0)
    else:
        assert result.headers("idempotency-status") == ["ignored"]
        assert (result.body, app.calls) == (b"a new answer", 1)
    assert again.body == b"a former answer"
