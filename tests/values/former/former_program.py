"""An application that was killed, and whose logs a later version of the library goes on with.

What it left is beside this module: ``one_database.sqlite`` and ``two_databases.sqlite`` with
``application.sqlite``, the files of SQLite, and ``postgres.sql``, the same on Postgres. Version
0.1.0 has written them, the last one that wrote each value with the names of its classes. Those
names, and those of the functions, are in the logs: nothing here may be renamed, nor the module be
moved.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import decimal
import enum
import pathlib
import threading
import uuid
import zoneinfo
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, PrivateAttr

from asgi_durable import (
    Durable,
    DurableError,
    FinalError,
    IdempotencyPolicy,
    RetryPolicy,
    StepInterruptedError,
    StepRetriesExhaustedError,
    WorkflowStatus,
)
from asgi_durable_fastapi import install

# Longer than anybody will keep the logs.
FOR_EVER_SECONDS = 1e9
SLEEP_SECONDS = 8.0
OSLO = zoneinfo.ZoneInfo("Europe/Oslo")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    HIGH = 3


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: int
    label: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    street: str
    colour: Colour


@dataclasses.dataclass
class Line:
    item: str
    price: decimal.Decimal
    count: int = 1


@dataclasses.dataclass
class Order:
    number: uuid.UUID
    lines: list[Line]
    address: Address
    placed_at: datetime.datetime
    tags: set[str] = dataclasses.field(default_factory=set)
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    total: decimal.Decimal = dataclasses.field(init=False, default=decimal.Decimal(0))

    def __post_init__(self) -> None:
        self.total = sum((one.price * one.count for one in self.lines), decimal.Decimal(0))


class Contact(BaseModel):
    email: str
    phone: str | None = None


class Customer(BaseModel):
    name: str = Field(alias="fullName")
    contact: Contact
    born: datetime.date | None = None
    level: Level = Level.HIGH
    _seen: int = PrivateAttr(default=0)


class OutOfStockError(Exception):
    def __init__(self, item: str, left: int) -> None:
        super().__init__(f"there are {left} of {item}")
        self.item = item
        self.left = left


class RefusedError(DurableError):
    def __init__(self, reason: str, *, address: Address) -> None:
        super().__init__(f"refused: {reason}", code="REFUSED", status_code=402)
        self.address = address


def order() -> Order:
    """Return an order."""
    return Order(
        number=uuid.UUID(int=7),
        lines=[Line("tea", decimal.Decimal("2.50"), 2), Line("salt", decimal.Decimal("0.10"))],
        address=Address("Elm", Colour.BLUE),
        placed_at=datetime.datetime(2026, 3, 29, 3, 30, tzinfo=OSLO),
        tags={"gift", "new"},
        notes={"of": ("a", b"b"), "at": datetime.date(2026, 1, 2)},
    )


def customer() -> Customer:
    """Return a customer; of its fields two are set, and one that is private."""
    made = Customer(fullName="Ada", contact=Contact(email="ada@example.com"))
    made._seen = 4
    return made


# What functions of this kind are annotated with, and given, and return.
VALUES: dict[str, tuple[object, Any]] = {
    "int": (int, 7),
    "big": (int, 1 << 70),
    "float": (float, 0.1),
    "bool": (bool, True),
    "str": (str, "høyre \N{GRINNING FACE} \x00"),
    "none": (None, None),
    "dict": (dict[str, int], {"a": 1, "b": 2}),
    "keys": (dict[int, str], {1: "one", 2: "two"}),
    "dollar": (dict[str, str], {"$": "price"}),
    "list": (list[int], [1, 2]),
    "tuple": (tuple[int, str], (1, "a")),
    "set": (set[str], {"a", "b"}),
    "bytes": (bytes, b"\x00\xff"),
    "dataclass": (Line, Line("tea", decimal.Decimal("1.10"), 3)),
    "nested": (Order, order()),
    "frozen": (Address, Address("Elm", Colour.RED)),
    "namedtuple": (Point, Point(1, 2)),
    "enum": (Colour, Colour.RED),
    "intenum": (Level, Level.HIGH),
    "flag": (Right, Right.READ | Right.WRITE),
    "model": (Customer, customer()),
    "datetime": (datetime.datetime, datetime.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=OSLO)),
    "utc": (datetime.datetime, datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)),
    "timedelta": (datetime.timedelta, datetime.timedelta(days=1, microseconds=3)),
    "decimal": (decimal.Decimal, decimal.Decimal("1.50")),
    "uuid": (uuid.UUID, uuid.UUID(int=9)),
    "path": (pathlib.Path, pathlib.Path("orders/7.txt")),
    "optional": (Line | None, Line("oil", decimal.Decimal(3))),
    "missing": (str | None, None),
    "any": (Any, {"mixed": [(1, 2), {3}, Colour.RED]}),
    "unannotated": (..., {"point": Point(3, 4), "line": Line("ink", decimal.Decimal(1))}),
    "wrong": (str, None),
    "inside": (list[Customer], [customer()]),
}


class Program:
    """The application.

    Args:
        url: The database of the step log.
        application_url: Another one, for the transactions.
        stops: True if each workflow and request waits in its middle, for the kill.

    Attributes:
        app: It, as a server would get it.
        ran: Each body that ran here, after the id of its workflow.
        seen: What workflows were given and got from their first step, by kind.
        held: Who waits for the kill.
    """

    def __init__(
        self, url: str, application_url: str | None = None, *, stops: bool = False
    ) -> None:
        policy = IdempotencyPolicy(
            authority="shop.example",
            retention=FOR_EVER_SECONDS,
            max_lifetime=FOR_EVER_SECONDS,
            stream="record",
            stream_after=0.0,
        )
        self.durable = durable = Durable(
            url,
            application_url=application_url,
            idempotency=policy,
            idempotency_routes={"POST /recovered": dataclasses.replace(policy, recover="server")},
        )
        self.stops = stops
        self.ran: list[tuple[str | None, str]] = []
        self.seen: dict[str | None, Any] = {}
        self.held: set[str | None] = set()
        self.hold = durable.step(name="hold")(self._hold)
        self.works: dict[str, Any] = {}
        self.gives: dict[str, Any] = {}
        for kind, (hint, _) in VALUES.items():
            self._define_kind(kind, hint)
        self._define_order()
        self._define_errors()
        self._define_others()
        self._define_questions()
        self.app = self._application()

    def ran_in(self, workflow_id: str) -> list[str]:
        """Return the bodies that ran here for a workflow."""
        return [name for found, name in self.ran if found == workflow_id]

    def _note(self, name: str) -> None:
        self.ran.append((self.durable.workflow_id, name))

    async def _hold(self) -> None:
        self._note("hold")
        if self.stops and not (self.durable.workflow_id or "").startswith("finished"):
            self.held.add(self.durable.workflow_id)
            await asyncio.Event().wait()

    def _define_kind(self, kind: str, hint: object) -> None:
        durable = self.durable

        async def take(value):  # type: ignore[no-untyped-def]
            self._note("take")
            return value

        async def again(value):  # type: ignore[no-untyped-def]
            self._note("again")
            return value

        async def work(value):  # type: ignore[no-untyped-def]
            taken = await step(value)
            await self.hold()
            self.seen[durable.workflow_id] = (value, taken, await other(taken))
            return taken

        async def give(value):  # type: ignore[no-untyped-def]
            return value

        hints = {} if hint is ... else {"value": hint, "return": hint}
        for function in (take, again, work, give):
            function.__annotations__ = dict(hints)
        step = durable.step(name=f"take {kind}")(take)
        other = durable.step(name=f"again {kind}")(again)
        self.works[kind] = durable.workflow(name=f"work {kind}")(work)
        self.gives[kind] = durable.workflow(name=f"give {kind}")(give)

    def _define_order(self) -> None:
        durable = self.durable

        @durable.step(name="reserve")
        async def reserve(order: Order, *, strict: bool = True) -> Order:
            self._note("reserve")
            reserved = dataclasses.replace(order)
            reserved.notes = {**order.notes, "strict": strict}
            return reserved

        @durable.transaction(name="insert")
        async def insert(order: Order) -> Line:
            self._note("insert")
            item = order.lines[0].item
            await durable.session.execute(
                sa.text("INSERT INTO sales VALUES (:item)"), {"item": item}
            )
            return order.lines[0]

        @durable.step(name="pack")
        async def pack(address: Address) -> Point:
            self._note("pack")
            return Point(1, 2, address.street)

        @durable.workflow(name="ship")
        async def ship(address: Address) -> Point:
            return await pack(address)

        @durable.workflow(name="buy")
        async def buy(order: Order) -> tuple[Order, Line, Point, str]:
            reserved = await reserve(order, strict=False)
            inserted = await insert(order)
            shipped = await ship(order.address)
            await self.hold()
            again = await insert(order)
            return reserved, inserted, shipped, again.item

        @durable.transaction(name="create")
        async def create() -> None:
            await durable.session.execute(sa.text("CREATE TABLE sales (item VARCHAR(20))"))

        @durable.transaction(name="count")
        async def count() -> int:
            counted = await durable.session.execute(sa.text("SELECT count(*) FROM sales"))
            found: int = counted.scalar_one()
            return found

        self.buy, self.reserve, self.insert, self.ship = buy, reserve, insert, ship
        self.create, self.count = create, count

    def _define_errors(self) -> None:
        durable = self.durable

        @durable.step(name="fail", retry=None)
        async def fail(how: str) -> None:
            self._note("fail")
            raise error_of(how)

        @durable.workflow(name="fails")
        async def fails(how: str) -> None:
            await fail(how)

        @durable.workflow(name="catches")
        async def catches(hows: list[str]) -> int:
            errors = []
            for how in hows:
                try:
                    await fail(how)
                except Exception as error:
                    errors.append(error)
            await self.hold()
            self.seen[durable.workflow_id] = errors
            return len(errors)

        self.fails, self.catches = fails, catches

    def _define_others(self) -> None:
        durable = self.durable
        attempts: list[int] = []

        @durable.step(name="quick")
        async def quick(number: int) -> Point:
            self._note("quick")
            return Point(number, number)

        @durable.step(name="once", at_most_once=True)
        async def once(*, stays: bool) -> str:
            self._note("once")
            if stays:
                await self._hold()
            return "once"

        @durable.step(name="shaky", retry=RetryPolicy(max_attempts=3, initial_interval=0.01))
        async def shaky(*, ever: bool) -> Line:
            self._note("shaky")
            attempts.append(1)
            if not ever or len(attempts) < 3:
                raise OutOfStockError("tea", len(attempts))
            return Line("tea", decimal.Decimal(len(attempts)))

        @durable.workflow(name="note")
        async def note(line: Line) -> Line:
            return await self.works["dataclass"](line)

        @durable.workflow(name="gathers")
        async def gathers() -> list[Point]:
            first, second, _ = await asyncio.gather(quick(1), quick(2), self.hold())
            return [first, second, await quick(3)]

        @durable.workflow(name="sleeps")
        async def sleeps() -> list[Point]:
            first = await quick(1)
            await durable.sleep(SLEEP_SECONDS)
            return [first, await quick(2)]

        @durable.workflow(name="backgrounds")
        async def backgrounds() -> str:
            note_id = await durable.background(note, Line("pen", decimal.Decimal(2)))
            await self.hold()
            return note_id

        @durable.workflow(name="onces")
        async def onces(*, stays: bool) -> str:
            first = await once(stays=False)
            try:
                second = await once(stays=stays)
            except StepInterruptedError as error:
                second = error.step
            await self.hold()
            return f"{first} {second}"

        @durable.workflow(name="retries")
        async def retries() -> tuple[Line, list[Any]]:
            line = await shaky(ever=True)
            try:
                await shaky(ever=False)
            except StepRetriesExhaustedError as error:
                errors = [(type(one).__name__, vars(one).get("left")) for one in error.errors]
            await self.hold()
            return line, errors

        self.quick, self.gathers, self.sleeps, self.onces = quick, gathers, sleeps, onces
        self.backgrounds, self.retries, self.note = backgrounds, retries, note

    def _define_questions(self) -> None:
        durable = self.durable

        @durable.workflow(name="asks")
        async def asks(workflow_id: str) -> tuple[Any, Line]:
            handle = await durable.retrieve_workflow(workflow_id)
            status: WorkflowStatus = await handle.get_status()
            result: Order = await handle.get_result()
            started = await durable.start_workflow(self.note, Line("ink", decimal.Decimal(1)))
            await self.hold()
            assert result == status.output
            return (status.status, status.input, result), await started.get_result()

        @durable.step(name="block")
        def block(point: Point) -> Point:
            self._note("block")
            if self.stops and point.label == "stays":
                self.held.add(durable.workflow_id)
                threading.Event().wait()
            return point

        @durable.workflow(name="blocks")
        def blocks(point: Point) -> list[Point]:
            return [block(point), block(Point(5, 6, "stays"))]

        self.asks, self.blocks = asks, blocks

    def _application(self) -> Callable[..., Any]:
        app, durable = FastAPI(), self.durable

        async def sell(customer: Customer, times: int) -> dict[str, Any]:
            reserved = await self.reserve(order())
            point = await self.ship(Address(customer.name, Colour.RED))
            if times:
                await self.hold()
            return {
                "total": str(reserved.total),
                "street": point.label,
                "last": await self.quick(9),
            }

        @app.post("/orders", status_code=201)
        async def create_order(customer: Customer, times: int = 0) -> dict[str, Any]:
            return await sell(customer, times)

        @app.post("/recovered", status_code=201)
        async def create_recovered(customer: Customer, times: int = 0) -> dict[str, Any]:
            return await sell(customer, times)

        @app.post("/workflows", status_code=201)
        @durable.workflow(name="create")
        async def create_in_workflow(customer: Customer) -> Customer:
            await self.quick(1)
            await self.hold()
            return customer

        @app.post("/failing", status_code=201)
        async def create_failing() -> Order:
            reserved = await self.reserve(order())
            if self.stops:
                raise OutOfStockError("tea", 0)
            return reserved

        @app.post("/refused")
        async def refuse() -> None:
            await self.quick(1)
            raise FinalError("sold out", code="SOLD_OUT", status_code=409)

        @app.post("/events")
        async def stream(times: int = 0) -> StreamingResponse:
            first = await self.quick(1)

            async def events() -> AsyncIterator[bytes]:
                yield f"data: {first.x}\n\n".encode()
                if times:
                    await self.hold()
                yield f"data: {first.y + 1}\n\n".encode()

            return StreamingResponse(events(), media_type="text/event-stream")

        install(app, durable)
        return app


def error_of(how: str) -> Exception:
    """Return an error of this kind."""
    errors: dict[str, Exception] = {
        "builtin": ValueError("no such thing", 3),
        "os": FileNotFoundError(2, "not there", "orders.txt"),
        "own": OutOfStockError("tea", 2),
        "durable": RefusedError("no money", address=Address("Elm", Colour.RED)),
        "caused": KeyError("outer"),
        "group": ExceptionGroup("several", [ValueError(1), OutOfStockError("salt", 0)]),
    }
    error = errors[how]
    if how == "caused":
        error.__cause__ = OutOfStockError("ink", 1)
        error.add_note("a note")
    return error


ERRORS = ["builtin", "os", "own", "durable", "caused", "group"]
