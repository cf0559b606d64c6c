"""The library's middlewares, each alone and all together, and keyed requests with two steps."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from asgi_durable import (
    Durable,
    IdempotencyMiddleware,
    LifespanMiddleware,
    ProblemDetailsMiddleware,
    RequestContextMiddleware,
)
from asgi_durable_fastapi import install
from benchmarks.http_contestants.bare import Order, answer, fastapi
from benchmarks.http_contestants.parts import ASGIApp, database_url


def request_context() -> ASGIApp:
    """The request id."""
    return RequestContextMiddleware(answer)


def problem_details() -> ASGIApp:
    """The error responses."""
    return ProblemDetailsMiddleware(answer)


def lifespan() -> ASGIApp:
    """The lifespan, which starts and stops the engine."""
    return LifespanMiddleware(answer, Durable(database_url()).engine)


def idempotency() -> ASGIApp:
    """The keyed requests, and the lifespan that they need."""
    engine = Durable(database_url()).engine
    return LifespanMiddleware(IdempotencyMiddleware(answer, engine), engine)


def context_and_idempotency() -> ASGIApp:
    """The request id around the keyed requests."""
    return RequestContextMiddleware(idempotency())


def stack() -> ASGIApp:
    """All of them."""
    return Durable(database_url()).wrap(answer)


def stack_two_steps() -> ASGIApp:
    """All of them around an app that calls two steps."""
    durable = Durable(database_url())

    @durable.step
    async def step(number: int) -> int:
        return number + 1

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await step(await step(0))
        await answer(scope, receive, send)

    return durable.wrap(app)


def fastapi_stack() -> FastAPI:
    """All of them in FastAPI."""
    app = fastapi()
    install(app, Durable(database_url()))
    return app


def fastapi_two_steps() -> FastAPI:
    """A handler that calls two steps."""
    app, durable = FastAPI(), Durable(database_url())

    @durable.step
    async def step(number: int) -> int:
        return number + 1

    @app.post("/")
    async def work(order: Order) -> dict[str, int]:
        return {"number": await step(await step(order.number))}

    install(app, durable)
    return app


def fastapi_workflow() -> FastAPI:
    """A handler that is a workflow, and calls two steps."""
    app, durable = FastAPI(), Durable(database_url())

    @durable.step
    async def step(number: int) -> int:
        return number + 1

    @app.post("/")
    @durable.workflow
    async def work(order: Order) -> dict[str, int]:
        return {"number": await step(await step(order.number))}

    install(app, durable)
    return app
