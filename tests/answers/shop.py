"""A shop whose one handler has two steps and a transaction, and does what a script says."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from answers.applications import Reply, build
from support.asgi import Exchange, http_scope
from support.executors import kill, query, until
from support.interruption import Gate

from asgi_durable import Durable, IdempotencyPolicy, StepInterruptedError
from asgi_durable.middleware.asgi import Message

__all__ = [
    "ALL",
    "Breakdown",
    "Client",
    "Script",
    "Shop",
    "Watched",
    "create_tables",
    "dies_in_its_second_step",
    "post_until_it_is_free",
    "prefer",
    "principal",
    "recorded",
    "requests",
    "sold",
]

# The steps of an order, in their order.
ALL = ["reserve", "ship", "save"]


class Breakdown(Exception):  # noqa: N818  no word of the library's
    """An error of a handler; some frameworks raise it again, some do not."""


def _opened() -> Gate:
    gate = Gate()
    gate.open()
    return gate


@dataclass(kw_only=True)
class Script:
    """The work of the handler; a test may change it between two attempts of a request.

    Attributes:
        refusal: Status of a response that is sent before anything is done.
        is_plain: True to do nothing durable.
        first: The argument of the first step.
        fails_at: Steps that raise.
        ships_once: True if the step ``ship`` runs at most once.
        finds_out: True to continue with another step if ``ship`` was interrupted.
        gate: The gate at which the step ``ship`` waits, or a plain handler.
        sleeps: Seconds for which the handler sleeps after ``ship``.
        at_end: Called before the response.
        error: Raised in place of a response.
        status: The response's status.
        headers: Added to the response.
        media_type: The response's media type.
        pieces: The chunks of a streamed body.
        late_error: Raised by a background task, after the response.
    """

    refusal: int | None = None
    is_plain: bool = False
    first: str = "reserve"
    fails_at: set[str] = field(default_factory=set)
    ships_once: bool = False
    finds_out: bool = False
    gate: Gate = field(default_factory=_opened)
    sleeps: float | None = None
    at_end: Callable[[], Awaitable[object]] | None = None
    error: Exception | None = None
    status: int = 201
    headers: dict[str, str] = field(default_factory=dict)
    media_type: str = "application/octet-stream"
    pieces: Iterable[bytes] | None = None
    late_error: Exception | None = None


class Shop:
    """The application in one process.

    Args:
        url: The database; several shops may share it.
        framework: The framework of the application.
        routes: Policies by route.
        policy: Options of the requests' policy.

    Attributes:
        script: The handler's work from now on.
        calls: How often the handler was called.
        ran: The bodies of steps and transactions that have run here.
        background_calls: How often the background task of a response was called.
    """

    def __init__(
        self,
        url: str,
        framework: str,
        *,
        routes: dict[str, IdempotencyPolicy | None] | None = None,
        lease: float = 15.0,
        storage_patience: float = 30.0,
        **policy: Any,
    ) -> None:
        self.durable = durable = Durable(
            url,
            idempotency=IdempotencyPolicy(**policy),
            idempotency_routes=routes,
            drain_timeout=0.0,
            lease=lease,
            storage_patience=storage_patience,
        )
        self.app = build(framework, self._handle, durable)
        self.script = Script()
        self.calls = 0
        self.ran: list[str] = []
        self.background_calls = 0

        async def do(name: str) -> str:
            self.ran.append(name)
            if name == "ship":
                await self.script.gate.wait()
            if name in self.script.fails_at:
                raise Breakdown(name)
            return f"{name} {uuid.uuid4()}"

        @durable.transaction(name="save")
        async def save(name: str) -> str:
            self.ran.append("save")
            await durable.session.execute(
                sa.text("INSERT INTO sold VALUES (:name)"), {"name": name}
            )
            return name

        self._step = durable.step(name="step", retry=None)(do)
        self._step_once = durable.step(name="step", at_most_once=True)(do)
        self._save = save

    async def post(self, **request: Any) -> Exchange:
        """Send a request, and return the exchange once the application is through.

        See :meth:`send_to` for the arguments.
        """
        return await self.send_to(Client(request.pop("body", b"{}")), **request)

    async def get(self, path: str, *headers: tuple[str, str]) -> Exchange:
        """Look at a page, without a key."""
        return await self.post(key=None, method="GET", path=path, headers=headers, body=b"")

    async def state(self, request: Exchange) -> str:
        """Return what the status page says of a request that was answered."""
        page = await self.get(f"/durable/requests/{request.headers('durable-id')[0]}")
        state: str = json.loads(page.body)["state"]
        return state

    async def send_to(
        self,
        exchange: Exchange,
        *,
        key: str | None = "k",
        method: str = "POST",
        path: str = "/orders",
        headers: Iterable[tuple[str, str]] = (),
        query_string: bytes = b"",
    ) -> Exchange:
        """Send a request whose messages go through an exchange."""
        keys = [] if key is None else [("Idempotency-Key", key)]
        scope = http_scope(method, path, [*keys, *headers], query_string=query_string)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except Exception as error:
            # Raised on by some frameworks, by some as the cause of an error of their own.
            if not isinstance(error.__cause__ or error, Breakdown):
                raise
        return exchange

    async def _handle(self, method: str) -> Reply:
        script = self.script
        self.calls += 1
        if script.refusal is not None:
            return self._reply(script.refusal, b"refused")
        if script.is_plain:
            # Nothing is recorded that a second run could repeat: each has another response.
            await script.gate.wait()
            body = f"call {self.calls}"
        else:
            done = [await self._step(script.first), await self._ship()]
            if script.sleeps is not None:
                await self.durable.sleep(script.sleeps)
            body = json.dumps([*done, await self._save("order")])
        if script.at_end is not None:
            await script.at_end()
        if script.error is not None:
            raise script.error
        if method == "HEAD" or script.status == 204:
            return self._reply(script.status, b"")
        # No text: bytes that no framework may touch.
        return self._reply(script.status, b"\xff\x00" + body.encode())

    async def _ship(self) -> str:
        if not self.script.ships_once:
            return await self._step("ship")
        try:
            return await self._step_once("ship")
        except StepInterruptedError:
            if not self.script.finds_out:
                raise
            return await self._step("find out")

    def _reply(self, status: int, body: bytes) -> Reply:
        script = self.script
        location = {"location": "/orders/1"} if status < 400 else {}
        return Reply(
            status=status,
            headers={**location, "etag": '"1"', "set-cookie": "secret=1", **script.headers},
            media_type=script.media_type,
            body=body,
            pieces=script.pieces,
            background=self._after_answer,
        )

    async def _after_answer(self) -> None:
        self.background_calls += 1
        if self.script.late_error is not None:
            raise self.script.late_error


class Client(Exchange):
    """An exchange whose app gets the disconnect after its response, as servers send it."""

    async def send(self, message: Message) -> None:
        await super().send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.disconnected.set()


class Watched(Client):
    """An exchange that calls a function at the first message of the response.

    Attributes:
        seen: The result of the call.
    """

    def __init__(self, ask: Callable[[], Awaitable[object]]) -> None:
        super().__init__(b"{}")
        self._ask = ask
        self.seen: object = None

    async def send(self, message: Message) -> None:
        if not self.sent:
            self.seen = await self._ask()
        await super().send(message)


def prefer(what: str) -> list[tuple[str, str]]:
    """Return a request's headers with a preference."""
    return [("Prefer", what)]


def principal(name: str) -> list[tuple[str, str]]:
    """Return a request's headers with somebody's credentials."""
    return [("Authorization", f"Bearer {name}")]


async def dies_in_its_second_step(shop: Shop) -> None:
    """Send a request, and kill the process while it is at the gate."""
    await shop.durable.engine.start()
    request = asyncio.create_task(shop.post())
    await shop.script.gate.reached.wait()
    await kill(shop.durable)
    await asyncio.wait([request])


async def post_until_it_is_free(shop: Shop) -> Exchange:
    """Send a request again for as long as its dead process has not been noticed."""

    async def is_answered() -> Exchange | None:
        result = await shop.post()
        return result if result.status not in (409, 503) else None

    result: Exchange = await until(is_answered)
    return result


async def create_tables(url: str) -> None:
    """Create the application's table, and the library's before it."""
    await Durable(url).migrate()
    await query(url, "CREATE TABLE sold (name TEXT)")


async def sold(url: str) -> int:
    """Return how many rows the transactions have left."""
    return len(await query(url, "SELECT name FROM sold"))


async def requests(url: str) -> list[tuple[str, int]]:
    """Return state and attempts of all keyed requests."""
    return await query(url, "SELECT state, attempts FROM asgi_durable_workflows")


async def recorded(url: str) -> int:
    """Return how many steps are recorded."""
    return len(await query(url, "SELECT 1 FROM asgi_durable_steps"))
