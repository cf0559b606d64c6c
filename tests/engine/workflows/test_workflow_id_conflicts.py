"""A workflow id that is used again, for the same call or for another one."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from pydantic import BaseModel
from support.executors import Worker
from support.interruption import Gate

from asgi_durable import Durable, DurableUsageError, WorkflowConflictError
from asgi_durable.errors import EncodeError

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


@dataclasses.dataclass
class Order:
    item: str
    options: dict[str, int]


@dataclasses.dataclass
class FormerOrder:
    item: str


async def test_other_arguments_under_an_id_are_a_conflict_that_names_them(url: str) -> None:
    ran: list[str] = []
    async with Durable(url) as durable:

        @durable.workflow
        async def pay(account: str, amount: int, currency: str = "EUR") -> int:
            ran.append(account)
            return amount

        with_id = durable.options(workflow_id="w")
        assert await with_id.run_workflow(pay, "a-secret", 1) == 1

        for call in (with_id.run_workflow, with_id.start_workflow):
            with pytest.raises(WorkflowConflictError) as caught:
                await call(pay, "b-secret", 2)
            assert caught.value.parameters == ("account", "amount")
            assert caught.value.status_code == 409
            assert all(word in str(caught.value) for word in ("'w'", "pay", "account, amount"))
            assert "secret" not in str(caught.value)
        attached = durable.options(workflow_id="w", on_conflict="attach")
        assert await attached.run_workflow(pay, "b-secret", 2) == 1
        assert await (await attached.start_workflow(pay, "b-secret", 2)).get_result() == 1

        with pytest.raises(WorkflowConflictError) as refused:
            await asyncio.to_thread(
                durable.blocking.options(workflow_id="w").run_workflow, pay, "a-secret", 2
            )
        assert refused.value.parameters == ("amount",)
        blocking = durable.blocking.options(workflow_id="w", on_conflict="attach")
        assert await asyncio.to_thread(blocking.run_workflow, pay, "a-secret", 2) == 1
    assert ran == ["a-secret"]


async def test_other_arguments_are_a_conflict_while_it_runs_here_or_elsewhere(url: str) -> None:
    gate = Gate()

    def build() -> tuple[Durable, Any]:
        durable = Durable(url)

        @durable.workflow
        async def work(number: int) -> int:
            await gate.wait()
            return number

        return durable, work

    (first, work), (second, duplicate) = build(), build()
    async with first, second:
        handle = await first.options(workflow_id="w").start_workflow(work, 1)
        with pytest.raises(WorkflowConflictError):
            await first.options(workflow_id="w").run_workflow(work, 2)
        with pytest.raises(WorkflowConflictError):
            await second.options(workflow_id="w").run_workflow(duplicate, 2)
        attached = second.options(workflow_id="w", on_conflict="attach").run_workflow(duplicate, 2)
        waiting = asyncio.ensure_future(attached)
        gate.open()
        assert await handle.get_result() == await waiting == 1


async def test_equal_arguments_are_no_conflict_however_they_are_given(url: str) -> None:
    async with Durable(url) as durable:

        @durable.workflow
        async def work(order: Order, plus: float = 0.5, *rest: int, **more: int) -> str:
            return order.item

        with_id = durable.options(workflow_id="w")
        await with_id.run_workflow(work, Order("pen", {"red": 1, "blue": 2}))
        same = Order("pen", {"blue": 2, "red": 1})
        assert await with_id.run_workflow(work, order=same, plus=0.5) == "pen"
        assert await with_id.run_workflow(work, same, 0.5) == "pen"
        with pytest.raises(WorkflowConflictError) as caught:
            await with_id.run_workflow(work, same, 0.5, 1, more=2)
        assert caught.value.parameters == ("rest", "more")

        not_a_number = durable.options(workflow_id="nan")
        for _ in range(2):
            await not_a_number.run_workflow(work, same, float("nan"))


async def test_parameters_that_came_or_went_with_the_code_are_no_conflict(url: str) -> None:
    async with Durable(url) as old:

        @old.workflow(name="work")
        async def before(number: int, gone: int = 1) -> int:
            return number

        await old.options(workflow_id="w").run_workflow(before, 1, gone=7)
    async with Durable(url) as new:

        @new.workflow(name="work")
        async def after(number: int, added: str = "x") -> int:
            return number

        with_id = new.options(workflow_id="w")
        assert await with_id.run_workflow(after, 1) == 1
        assert await with_id.run_workflow(after, 1, "x") == 1
        with pytest.raises(WorkflowConflictError) as caught:
            await with_id.run_workflow(after, 1, "y")
        assert caught.value.parameters == ("added",)


@pytest.mark.parametrize("kind", ["dataclass", "model"])
async def test_fields_that_came_with_the_code_are_no_conflict(url: str, kind: str) -> None:
    def build(version: int) -> tuple[Durable, Any, Any]:
        durable = Durable(url)
        names: dict[str, Any] = {"item": str} | ({"gift": bool} if version == 2 else {})
        members = {"__annotations__": names, "__module__": __name__, "__qualname__": "Parcel"}
        defaults = {"gift": False} if version == 2 else {}
        base = BaseModel if kind == "model" else object
        parcel: Any = type(base)("Parcel", (base,), members | defaults)
        if kind == "dataclass":
            parcel = dataclasses.dataclass(parcel)

        async def work(parcels: Any) -> int:
            return version

        work.__annotations__["parcels"] = list[parcel]
        return durable, durable.workflow(work), parcel

    old, work, parcel = build(1)
    async with old:
        await old.options(workflow_id="w").run_workflow(work, [parcel(item="pen")])
    new, work, parcel = build(2)
    async with new:
        with_id = new.options(workflow_id="w")
        assert await with_id.run_workflow(work, [parcel(item="pen")]) == 1
        for parcels in ([parcel(item="book")], [], [parcel(item="pen")] * 2):
            with pytest.raises(WorkflowConflictError):
                await with_id.run_workflow(work, parcels)


async def test_arguments_that_cannot_be_read_any_more_are_attached_to(url: str) -> None:
    async with Durable(url) as old:

        @old.workflow(name="work")
        async def before(order: FormerOrder) -> int:
            return 1

        await old.options(workflow_id="w").run_workflow(before, FormerOrder("pen"))
    async with Durable(url) as new:

        @new.workflow(name="work")
        async def after(order: Order) -> int:
            return 2

        assert await new.options(workflow_id="w").run_workflow(after, Order("book", {})) == 1


async def test_a_replay_attaches_to_the_child_that_it_has_called(url: str) -> None:
    gate = Gate()
    arguments = iter((1, 2))

    def build() -> tuple[Durable, Any]:
        durable = Durable(url, drain_timeout=0.0)

        @durable.workflow
        async def child(number: int) -> int:
            return number

        @durable.workflow
        async def parent() -> int:
            result = await durable.options(workflow_id="c").run_workflow(child, next(arguments))
            await gate.wait()
            return result

        return durable, parent

    durable, parent = build()
    async with durable:
        await durable.options(workflow_id="p").start_workflow(parent)
        await gate.reached.wait()
    gate.open()
    durable, parent = build()
    async with durable:
        assert await durable.options(workflow_id="p").run_workflow(parent) == 1
    assert next(arguments, None) is None


async def test_a_workflow_can_catch_the_conflict_of_a_call(url: str) -> None:
    async with Durable(url) as durable:

        @durable.workflow
        async def child(number: int) -> int:
            return number

        @durable.workflow
        async def parent() -> str:
            with_id = durable.options(workflow_id="c")
            await with_id.run_workflow(child, 1)
            try:
                await with_id.run_workflow(child, 2)
            except WorkflowConflictError as error:
                return f"other {error.parameters}"
            return "none"

        assert await parent() == "other ('number',)"


async def test_a_conflict_leaves_an_interrupted_workflow_to_its_recovery(url: str) -> None:
    async with Worker(url, waits=True) as first:
        await first.begin("w")
    async with Worker(url) as second:

        @second.workflow(name="other")
        async def other() -> None: ...

        with pytest.raises(WorkflowConflictError):
            await second.options(workflow_id="w").run_workflow(other)
        assert await second.options(workflow_id="w").run_workflow(second.work) == [0, 1, 2]


async def test_how_a_conflict_is_settled_is_one_of_two_words() -> None:
    with pytest.raises(DurableUsageError, match="on_conflict is 'raise' or 'attach'"):
        Durable("sqlite://").options(workflow_id="w", on_conflict="replace")  # type: ignore[arg-type]


async def test_an_argument_that_cannot_be_recorded_is_refused_first(url: str) -> None:
    async with Durable(url) as durable:

        @durable.workflow
        async def work(value: object) -> None: ...

        await durable.options(workflow_id="w").run_workflow(work, 1)
        with pytest.raises(EncodeError):
            await durable.options(workflow_id="w").run_workflow(work, object())
