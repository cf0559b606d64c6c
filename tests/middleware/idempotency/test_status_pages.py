"""Requests that take long: their clients get the URL of a status page, and look there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from support.asgi import Exchange, answer, exchange, http_scope, keyed
from support.interruption import Gate

from asgi_durable import Durable, DurableUsageError, IdempotencyPolicy

pytestmark = pytest.mark.anyio

ALICE, BOB = [("authorization", "Bearer alice")], [("authorization", "Bearer bob")]
ASYNC = [("Prefer", "respond-async")]


class Press:
    """An application in one process that takes long.

    Attributes:
        fails: True to respond 500 after the gate.
    """

    def __init__(self, url: str, **policy: object) -> None:
        self.durable = Durable(url, idempotency=IdempotencyPolicy(**policy), drain_timeout=0.0)
        self.app: Callable[..., Awaitable[None]] = self.durable.wrap(self._serve)
        self.gate = Gate()
        self.fails = False
        self.paths: list[str] = []

        @self.durable.step
        async def print_page(number: int) -> int:
            if number == 1:
                await self.gate.wait()
            return number

        self._print_page = print_page

    async def post(self, headers: list[tuple[str, str]]) -> Exchange:
        """Send the request."""
        return await exchange(self.app, keyed(headers=headers), b"{}")

    async def get(self, path: str, headers: list[tuple[str, str]], **more: object) -> Exchange:
        """Look at a page."""
        return await exchange(self.app, http_scope("GET", path, headers, **more))

    async def get_until_done(self, path: str, headers: list[tuple[str, str]]) -> Exchange:
        """Look at a page until it says that the request is done."""
        while (page := await self.get(path, headers)).status == 200:
            await asyncio.sleep(0)
        return page

    async def _serve(self, scope, receive, send) -> None:
        self.paths.append(scope["path"])
        if scope["method"] == "POST":
            pages = [await self._print_page(0), await self._print_page(1)]
            if self.fails:
                raise OSError("no paper")
            headers = [(b"content-type", b"text/plain"), (b"etag", b'"e"')]
            await answer(send, repr(pages).encode(), status=201, headers=headers)
        else:
            await answer(send, b"the app's own")


async def test_a_client_gets_a_location_and_finds_the_response_there(url: str) -> None:
    press = Press(url)
    async with press.durable:
        accepted = await press.post(ALICE + ASYNC)
        await press.gate.reached.wait()
        (status_path,) = accepted.headers("location")
        running = await press.get(status_path, ALICE)
        too_early = await press.get(f"{status_path}/result", ALICE)
        press.gate.open()
        done = await press.get_until_done(status_path, ALICE)
        (result_path,) = done.headers("location")
        result = await press.get(result_path, ALICE)
        replay = await press.post(ALICE + ASYNC)

    assert accepted.status == 202
    assert accepted.headers("preference-applied") == ["respond-async"]
    assert accepted.headers("retry-after") == ["1"]
    (request_id,) = accepted.headers("durable-id")
    assert status_path == f"/durable/requests/{request_id}"
    assert (running.status, json.loads(running.body)) == (
        200,
        {"id": request_id, "state": "RUNNING", "steps": 1, "attempts": 1, "retry_after": 1},
    )
    assert running.headers("cache-control") == ["no-store"]
    assert (too_early.status, json.loads(too_early.body)["code"]) == (409, "IN_PROGRESS")
    assert (done.status, json.loads(done.body)["state"]) == (303, "DONE")
    assert (result.status, result.body, result.headers("etag")) == (201, b"[0, 1]", ['"e"'])
    assert (replay.status, replay.body) == (201, b"[0, 1]")
    assert press.paths == ["/"]


async def test_the_second_one_gets_a_location_as_well(database_url: str) -> None:
    here, there = Press(database_url), Press(database_url)
    async with here.durable, there.durable:
        first = asyncio.create_task(here.post(ALICE))
        await here.gate.reached.wait()
        accepted = [await press.post(ALICE + ASYNC) for press in (here, there)]
        refused = await there.post([*ALICE, ("Prefer", "wait=0")])
        page = await there.get(accepted[0].headers("location")[0], ALICE)
        here.gate.open()
        answered = await first

    assert [one.status for one in accepted] == [202, 202]
    assert accepted[0].headers("location") == accepted[1].headers("location")
    assert (refused.status, refused.headers("location")) == (409, accepted[0].headers("location"))
    assert json.loads(page.body)["state"] == "RUNNING"
    assert answered.status == 201


async def test_a_client_may_wait_for_a_while_first(url: str) -> None:
    press = Press(url)
    press.gate.open()
    async with press.durable:
        answered = await press.post([*ALICE, ("Prefer", "respond-async, wait=30")])

    assert (answered.status, answered.body) == (201, b"[0, 1]")


async def test_what_fails_behind_the_clients_back_waits_for_its_retry(url: str) -> None:
    press = Press(url)
    press.fails = True
    async with press.durable:
        accepted = await press.post(ALICE + ASYNC)
        (path,) = accepted.headers("location")
        press.gate.open()
        while json.loads((await press.get(path, ALICE)).body)["state"] != "RETRYABLE":
            await asyncio.sleep(0)
        press.fails = False
        retry = await press.post(ALICE)

        assert (retry.status, retry.body) == (201, b"[0, 1]")
        assert (await press.get(path, ALICE)).status == 303


async def test_nobody_sees_what_is_another_principals(url: str) -> None:
    press = Press(url)
    press.gate.open()
    async with press.durable:
        done = await press.post(ALICE)
        path = f"/durable/requests/{done.headers('durable-id')[0]}"
        unknown = f"/durable/requests/{'a' * 42}"
        for headers in (BOB, []):
            for page in (path, f"{path}/result", unknown):
                refused = await press.get(page, headers)

                assert refused.status == 404
                assert b"[0, 1]" not in refused.body
        assert (await press.get(path, ALICE)).status == 303


async def test_other_paths_are_the_apps(url: str) -> None:
    press, off = Press(url), Press(url, status_prefix=None)
    paths = ["/durable/requests", "/durable/requests/", f"/durable/requests/{'a' * 41}", "/"]
    async with press.durable, off.durable:
        for path in paths:
            assert (await press.get(path, ALICE)).body == b"the app's own"
        assert (await off.get(f"/durable/requests/{'a' * 42}", ALICE)).body == b"the app's own"
        off.gate.open()
        assert (await off.post(ALICE + ASYNC)).status == 201


async def test_a_mounted_app_is_found_where_it_is_mounted(url: str) -> None:
    press = Press(url, status_prefix="/jobs")
    async with press.durable:
        scope = keyed(path="/api/", headers=ALICE + ASYNC, root_path="/api")
        accepted = await exchange(press.app, scope, b"{}")
        (path,) = accepted.headers("location")
        running = await press.get(path, ALICE, root_path="/api")
        behind_proxy = await press.get(path.removeprefix("/api"), ALICE, root_path="/api")

    assert path.startswith("/api/jobs/")
    assert (running.status, behind_proxy.status) == (200, 200)


@pytest.mark.parametrize("prefix", ["", "/", "jobs", "/jobs/", "/a b", "/{id}"])
def test_a_prefix_that_is_no_path_is_refused(prefix: str) -> None:
    with pytest.raises(DurableUsageError, match="status_prefix"):
        IdempotencyPolicy(status_prefix=prefix)


async def test_a_stop_of_the_process_leaves_what_was_accepted_to_its_retry(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    first, second = Press(url), Press(url)
    async with first.durable:
        accepted = await first.post(ALICE + ASYNC)
        await first.gate.reached.wait()
    second.gate.open()
    async with second.durable:
        page = await second.get(accepted.headers("location")[0], ALICE)
        retry = await second.post(ALICE)

    assert json.loads(page.body)["state"] == "RETRYABLE"
    assert (retry.status, retry.body) == (201, b"[0, 1]")
