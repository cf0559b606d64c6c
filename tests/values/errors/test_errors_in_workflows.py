"""A workflow catches the same error in its first run and in a replay by another process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from support.interruption import Gate

from asgi_durable import Durable, Payloads, RemoteError

pytestmark = pytest.mark.anyio

Seen = list[object]


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


def refused() -> None:
    answer = httpx.Response(402, headers={"retry-after": "9"}, json={"reason": "no money"})
    client = httpx.Client(transport=httpx.MockTransport(lambda _: answer))
    client.get("https://pay.example/charges", headers={"authorization": "x"}).raise_for_status()


def shop(url: str, gate: Gate, seen: Seen, fail: Callable[[], None]) -> Durable:
    """Return a process's application: it fails in a step and a transaction, and then waits."""
    durable = Durable(url, drain_timeout=0.0)

    @durable.step(name="pay", retry=None)
    async def pay() -> None:
        fail()

    @durable.transaction(name="book")
    async def book() -> None:
        fail()

    @durable.step(name="wait")
    async def wait() -> None:
        await gate.wait()

    @durable.workflow(name="work")
    async def work() -> None:
        for failing in (pay, book):
            try:
                await failing()
            except Exception as error:
                seen.append(error)
        await wait()

    durable.work = work  # type: ignore[attr-defined]
    return durable


async def seen_twice(
    url: str, fail: Callable[[], None], between: Callable[[Durable], None] = lambda _: None
) -> tuple[list[Any], list[Any]]:
    """Return what two processes see; the second one reads the log of the first."""
    first, second, gate = [], [], Gate()
    durable = shop(url, gate, first, fail)
    async with durable:
        await durable.options(workflow_id="w").start_workflow(durable.work)  # type: ignore[attr-defined]
        await gate.reached.wait()
    gate.open()
    durable = shop(url, gate, second, lambda: pytest.fail("it ran again"))
    between(durable)
    async with durable:
        await (await durable.retrieve_workflow("w")).get_result()
    return first, second


def what_httpx_says(error: httpx.HTTPStatusError) -> tuple[object, ...]:
    response = error.response
    return (
        type(error),
        str(error),
        response.status_code,
        response.json(),
        response.headers["retry-after"],
        str(error.request.url),
        list(error.request.headers),
    )


async def test_the_response_of_an_http_error_is_there_on_the_first_run_and_on_a_replay(
    url: str,
) -> None:
    first, second = await seen_twice(url, refused)

    said = [what_httpx_says(error) for error in (*first, *second)]

    assert said == [said[0]] * 4
    assert said[0][2:5] == (402, {"reason": "no money"}, "9")


async def test_an_error_of_the_database_is_the_same_on_the_first_run_and_on_a_replay(
    url: str,
) -> None:
    seen: list[tuple[object, ...]] = []

    def build(gate: Gate) -> Durable:
        durable = Durable(url, drain_timeout=0.0)

        @durable.transaction(name="book")
        async def book() -> None:
            await durable.session.execute(sa.text("insert into t values (:a)"), {"a": 1})

        @durable.step(name="wait")
        async def wait() -> None:
            await gate.wait()

        @durable.workflow(name="work")
        async def work() -> None:
            try:
                await book()
            except sa.exc.IntegrityError as error:
                cause = getattr(error.orig, "__cause__", None)
                constraint = getattr(cause, "constraint_name", None)
                seen.append((type(error), str(error), type(error.orig), error.params, constraint))
            await wait()

        @durable.transaction(name="prepare")
        async def prepare() -> None:
            await durable.session.execute(sa.text("create table t (a int primary key)"))
            await durable.session.execute(sa.text("insert into t values (1)"))

        durable.work, durable.prepare = work, prepare  # type: ignore[attr-defined]
        return durable

    gate = Gate()
    durable = build(gate)
    async with durable:
        await durable.prepare()  # type: ignore[attr-defined]
        await durable.options(workflow_id="w").start_workflow(durable.work)  # type: ignore[attr-defined]
        await gate.reached.wait()
    gate.open()
    durable = build(gate)
    async with durable:
        await (await durable.retrieve_workflow("w")).get_result()

    assert seen == [seen[0]] * 2
    assert seen[0][0] is sa.exc.IntegrityError
    assert seen[0][2] is not RemoteError
    assert seen[0][4] == (None if url.startswith("sqlite") else "t_pkey")


class SocketError(Exception):
    def __init__(self, socket: object) -> None:
        super().__init__("broken")
        self.socket = socket


def broken() -> None:
    raise SocketError(memoryview(b""))


async def test_an_attribute_that_cannot_be_recorded_is_missing_on_the_first_run_too(
    url: str,
) -> None:
    first, second = await seen_twice(url, broken)

    for error in (*first, *second):
        assert type(error) is SocketError
        assert not hasattr(error, "socket")
        assert any("socket (builtins.memoryview)" in note for note in error.__notes__)


def module(name: str, *, renamed: bool = False) -> ModuleType:
    """Return a module of an application in one of two versions."""
    made = ModuleType(name)
    body = {"__module__": name}
    cls: Any = type("PaidError" if renamed else "PayError", (Exception,), body)
    setattr(made, cls.__name__, cls)
    return made


@pytest.mark.parametrize("with_alias", [True, False])
async def test_a_class_that_was_renamed_is_found_where_an_alias_leads_to_it(
    url: str, monkeypatch: pytest.MonkeyPatch, *, with_alias: bool
) -> None:
    old, new = module("exc_shop"), module("exc_shop", renamed=True)
    monkeypatch.setitem(sys.modules, "exc_shop", old)

    def fail() -> None:
        error = old.PayError("no card")
        error.code = 7
        raise error

    def deploy(durable: Durable) -> None:
        monkeypatch.setitem(sys.modules, "exc_shop", new)
        if with_alias:
            durable.register_exception(new.PaidError, aliases=["exc_shop:PayError"])

    first, second = await seen_twice(url, fail, deploy)

    assert {(type(error), str(error), error.code) for error in first} == {
        (old.PayError, "no card", 7)
    }
    if with_alias:
        assert {(type(error), str(error), error.code) for error in second} == {
            (new.PaidError, "no card", 7)
        }
    else:
        assert {type(error) for error in second} == {RemoteError}
        assert {error.message for error in second} == {"no card"}


async def test_a_missing_attribute_is_explained_where_the_workflow_ends(
    durable: Durable,
) -> None:
    @durable.step(retry=None)
    async def fail() -> None:
        broken()

    @durable.workflow
    async def work() -> None:
        try:
            await fail()
        except SocketError as error:
            socket: Any = error.socket
            socket.release()

    for _ in range(2):
        with pytest.raises(AttributeError) as raised:
            await durable.options(workflow_id="w").run_workflow(work)

        assert "The attribute 'socket' of the recorded" in raised.value.__notes__[0]
        assert "register_exception" in raised.value.__notes__[0]


@pytest.mark.parametrize(("size", "cls"), [(1_500, ValueError), (100, RemoteError)])
async def test_an_error_is_recorded_whatever_the_limit_of_payloads_is(
    url: str, size: int, cls: type[Exception]
) -> None:
    durable = Durable(url, payloads=Payloads(max_size=size))

    @durable.step(retry=None)
    async def fail() -> None:
        raise ValueError("x" * 100_000)

    @durable.workflow
    async def work() -> None:
        await fail()

    async with durable:
        for _ in range(2):
            with pytest.raises(cls, match=r"xxx.*100000 characters") as raised:
                await durable.options(workflow_id="w").run_workflow(work)
            assert len([note for note in raised.value.__notes__ if "too large" in note]) == 1
        status = await (await durable.retrieve_workflow("w")).get_status()

    assert status.status == "ERROR"


async def test_what_is_registered_with_an_application_is_what_its_log_holds(url: str) -> None:
    def register(durable: Durable) -> None:
        durable.register_exception(
            SocketError,
            to_data=lambda error: bytes(error.socket),  # type: ignore[call-overload]
            from_data=lambda data: SocketError(memoryview(data)),
        )

    durable = Durable(url)
    register(durable)

    @durable.workflow(name="work")
    async def work() -> None:
        raise SocketError(memoryview(b"abc"))

    async with durable:
        handle = await durable.options(workflow_id="w").start_workflow(work)
        with pytest.raises(SocketError):
            await handle.get_result()
    other = Durable(url)
    register(other)
    async with other:
        with pytest.raises(SocketError) as raised:
            await (await other.retrieve_workflow("w")).get_result()

    assert raised.value.socket == memoryview(b"abc")


async def test_an_error_whose_record_is_damaged_does_not_break_the_workflows_status(
    sqlite_url: str,
) -> None:
    durable = Durable(sqlite_url)

    @durable.workflow(name="work")
    async def work() -> None:
        broken()

    async with durable:
        handle = await durable.options(workflow_id="w").start_workflow(work)
        with pytest.raises(SocketError):
            await handle.get_result()
    engine = sa.create_engine(sqlite_url)
    with engine.begin() as connection:
        connection.execute(
            sa.text("update asgi_durable_workflows set error = :e"), {"e": b'{"$":"error","t":1}'}
        )
    engine.dispose()
    async with durable:
        status = await (await durable.retrieve_workflow("w")).get_status()

    assert (status.status, type(status.error)) == ("ERROR", RemoteError)
