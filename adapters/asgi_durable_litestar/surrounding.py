"""Puts the outer part of the stack around a Litestar application, which stays the same object."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from litestar import Litestar

from asgi_durable import Durable, IdempotencyMiddleware, IdempotencyPolicy
from asgi_durable.middleware.installing.placement import class_of
from asgi_durable_litestar.handlers import handler_policy, handlers_of

__all__ = ["surround"]


class _Surrounded:
    """Marks the class of an application that has the stack around it."""

    __slots__ = ()


def surround(app: Any, durable: Durable) -> None:
    """Put the request context and the lifespan around an application, unless they are there.

    Litestar has no place for either: its middlewares belong to routes. So the application gets
    a class of its own, with another ``__call__``.
    """
    base = type(app)
    if not issubclass(base, Litestar) or issubclass(base, _Surrounded):
        return

    async def serve_inside(scope: Any, receive: Any, send: Any) -> None:
        await base.__call__(app, scope, receive, send)

    stack = durable.wrap_outer(
        serve_inside,
        inside=partial(_inside, app),
        around=partial(_around, app),
        handler_policies=partial(_policies, app),
    )

    async def serve(_app: Litestar, scope: Any, receive: Any, send: Any) -> None:
        await stack(scope, receive, send)

    members = {"__slots__": (), "__call__": serve, "__module__": base.__module__}
    app.__class__ = type(base.__name__, (_Surrounded, base), members)


def _inside(app: Litestar) -> Iterator[type]:
    """Return the classes of the middlewares inside the idempotency middleware, of any handler."""
    for handler in _handlers(app):
        # The innermost one comes first.
        kinds = [class_of(entry) for entry in handler.resolve_middleware()]
        if IdempotencyMiddleware in kinds:
            yield from kinds[: kinds.index(IdempotencyMiddleware)]


def _around(app: Litestar) -> Iterator[type]:
    """Return the classes of the middlewares around the idempotency middleware, of any handler."""
    for handler in _handlers(app):
        kinds = [class_of(entry) for entry in handler.resolve_middleware()]
        if IdempotencyMiddleware in kinds:
            yield from kinds[kinds.index(IdempotencyMiddleware) + 1 :]


def _policies(app: Litestar) -> Iterator[IdempotencyPolicy]:
    """Return the policies that handlers have of their own."""
    policies = (handler_policy(handler) for handler in _handlers(app))
    return (policy for policy in policies if policy is not None)


def _handlers(app: Litestar) -> Iterator[Any]:
    for route in app.routes:
        yield from handlers_of(route)
