"""``Durable``: the object through which an application uses the library."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

from asgi_durable.codec.json_codec import Codec, JsonCodec
from asgi_durable.engine.blocking_engine import BlockingEngine
from asgi_durable.engine.engine import Engine
from asgi_durable.engine.process.registry import Registry
from asgi_durable.engine.process.settings import Limits, positive_seconds
from asgi_durable.engine.runs.call import WorkflowOptions
from asgi_durable.errors import DurableUsageError
from asgi_durable.log_context import DurableLogFilter
from asgi_durable.middleware.asgi import ASGIApp, Scope
from asgi_durable.middleware.idempotency.middleware import IdempotencyMiddleware
from asgi_durable.middleware.installing.bare_routes import refuse_bare_routes
from asgi_durable.middleware.installing.inner_stack import InnerStack, opens_a_span
from asgi_durable.middleware.installing.placement import classes_within, warn_of_misplaced
from asgi_durable.middleware.installing.session_cookies import (
    SessionCookieMiddleware,
    warn_of_sessions,
)
from asgi_durable.middleware.lifespan import LifespanMiddleware
from asgi_durable.middleware.policies.policy import IdempotencyPolicy
from asgi_durable.middleware.problem_details import ProblemDetailsMiddleware
from asgi_durable.middleware.request_context import RequestContextMiddleware
from asgi_durable.middleware.request_id_policy import RequestIdPolicy, checked_header_names
from asgi_durable.middleware.responses.session_changes import warn_of_lost_sessions
from asgi_durable.middleware.tracing import TracingMiddleware
from asgi_durable.payloads import Payloads
from asgi_durable.storage.entry_point import find_storage, load_storage
from asgi_durable.storage.transaction_port import ApplicationDatabase
from asgi_durable.storage.urls import fixed_url, without_driver, working_folder
from asgi_durable.telemetry.config import Telemetry
from asgi_durable.verbs.awaitable import AwaitableVerbs
from asgi_durable.verbs.blocking import Blocking
from asgi_durable.verbs.current_context import CurrentContext
from asgi_durable.verbs.decorators import Decorators

__all__ = ["Durable"]

URL_VARIABLE = "ASGI_DURABLE_URL"
DEFAULT_URL = "sqlite:///asgi_durable.db"


class Durable(Decorators, CurrentContext, AwaitableVerbs):
    """Makes an application's functions and requests durable.

    Nothing connects before the application starts, so decorators can run at import. Several
    instances can live in one process, each with a database of its own.

    Example::

        durable = Durable("sqlite:///orders.db")


        @durable.step
        async def charge(order_id: int) -> str: ...


        @durable.workflow
        async def checkout(order_id: int) -> str:
            return await charge(order_id)


        app = durable.wrap(app)

    Args:
        url: The database, for example ``sqlite:///orders.db``. The default is the environment
            variable ``ASGI_DURABLE_URL``, else ``sqlite:///asgi_durable.db``. The path of a file
            is relative to the working directory in which the instance is made. The SQLite adapter
            reads ``?synchronous=`` (``FULL``, the default, survives a loss of power; ``NORMAL``
            may lose the last commits to one) and ``?busy_timeout=`` (in seconds, 5 by default).
        application_url: The database of ``durable.session``, if it is not the database of the
            step log. The record of a transaction is then stored beside the application's data,
            in a table named ``asgi_durable_transactions``.
        codec: Encodes values that no annotation describes; the default writes readable JSON
            that preserves types.
        payloads: Size limit, compression and encryption of recorded values; the default is a
            limit of 16 MiB, and neither compression nor encryption.
        idempotency: The policy of requests with an ``Idempotency-Key``.
        idempotency_routes: Other policies by route, for example ``"POST /orders/{order_id}"`` or
            ``"/hooks/{rest:path}"``; the first route that matches counts. ``None`` turns keys off
            for a route.
        request_id_headers: Headers that a request id is read from; the response has the first.
        request_ids: How a missing request id is made, and which ids are accepted.
        drain_timeout: Seconds that a stop waits for active runs before it interrupts them.
        storage_patience: Seconds that an unavailable storage is retried before a run is given up;
            it is resumed later.
        lease: Seconds that the process counts as alive after its last heartbeat; after that other
            processes take its workflows over. A process that has ended is noticed sooner.
        telemetry: Where spans, metrics and log lines go; by default to the OpenTelemetry
            providers that the application has set, if it has set any.

    Attributes:
        blocking: The verbs for code that is not async, in a thread without an event loop.

    Raises:
        DurableUsageError: A URL has no scheme, or no storage adapter is installed for it; a
            header name is not valid; there are encryption keys, but no library for encryption; or
            a policy asks for a single transaction, which two databases cannot have.
        ValueError: There is no header for a request id.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        application_url: str | None = None,
        codec: Codec | None = None,
        payloads: Payloads | None = None,
        idempotency: IdempotencyPolicy | None = None,
        idempotency_routes: Mapping[str, IdempotencyPolicy | None] | None = None,
        request_id_headers: Sequence[str] = ("X-Request-ID",),
        request_ids: RequestIdPolicy | None = None,
        drain_timeout: float = 5.0,
        storage_patience: float = 30.0,
        lease: float = 15.0,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.url = url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
        self.idempotency = idempotency or IdempotencyPolicy()
        self.idempotency_routes = dict(idempotency_routes or {})
        self.request_id_headers = checked_header_names(request_id_headers)
        self.request_ids = request_ids or RequestIdPolicy()
        self.application_url = application_url
        self.telemetry = telemetry or Telemetry()
        self.telemetry.filter_exported_logs(DurableLogFilter())
        # Relative paths start here, even if the working directory changes before the start.
        self._folder = working_folder()
        self._refuse_two_databases_in_one_transaction()
        # Fails early if no adapter is installed. The start chooses the adapter, as tests change
        # the URL before it.
        for each in filter(None, (self.url, application_url)):
            find_storage(each)
        engine = Engine(
            lambda: load_storage(self.url)(fixed_url(self.url, self._folder)),
            self._open_application_database,
            Registry(codec or JsonCodec(), payloads or Payloads()),
            Limits(
                drain_timeout_seconds=drain_timeout,
                storage_retry_seconds=storage_patience,
                lease_seconds=positive_seconds(lease, "lease"),
                request_lifetime_seconds=self.idempotency.max_lifetime,
                cancelled_requests=self.idempotency.final_retention,
                spooled_bytes=self.idempotency.max_spooled,
            ),
            self.telemetry,
        )
        super().__init__(engine, WorkflowOptions())
        self.thread_calls = BlockingEngine(engine)
        self.blocking = Blocking(engine, self.thread_calls)

    def _refuse_two_databases_in_one_transaction(self) -> None:
        policies = [self.idempotency, *self.idempotency_routes.values()]
        if not self._has_two_databases():
            return
        if any(policy is not None and policy.single_transaction for policy in policies):
            msg = "single_transaction=True needs the step log in the application's database"
            raise DurableUsageError(msg)

    def _open_application_database(self) -> ApplicationDatabase | None:
        url = self.application_url
        if url is None or not self._has_two_databases():
            return None
        adapter = load_storage(url)
        database: ApplicationDatabase = adapter.application_database(fixed_url(url, self._folder))
        return database

    def _has_two_databases(self) -> bool:
        if self.application_url is None:
            return False
        urls = (self.url, self.application_url)
        return len({without_driver(fixed_url(url, self._folder)) for url in urls}) > 1

    # Life cycle

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Return an ASGI app with the whole middleware stack around it.

        If the app is one of Starlette, FastAPI or Litestar, and one of its routes calls a durable
        function without its decorator, the start raises ``DurableUsageError``.

        If the app itself opens a span for each request, as FastAPI does, the stack is inside that
        span and around everything else; then a call of *app* itself does not go through the stack.

        Example::

            app = durable.wrap(Starlette(routes=routes))
        """
        registry = self.engine.registry
        registry.checks.append(partial(refuse_bare_routes, registry, app))

        def surround(inner: ASGIApp) -> ASGIApp:
            keyed = IdempotencyMiddleware(
                ProblemDetailsMiddleware(inner),
                self.engine,
                policy=self.idempotency,
                routes=self.idempotency_routes,
            )
            return self.wrap_outer(keyed, inside=partial(classes_within, app))

        return InnerStack(app, surround) if opens_a_span(app) else surround(app)

    def wrap_outer(
        self,
        app: ASGIApp,
        *,
        inside: Callable[[], Iterable[type]] = tuple,
        around: Callable[[], Iterable[type]] = tuple,
        handler_policies: Callable[[], Iterable[IdempotencyPolicy]] = tuple,
        find_route: Callable[[Scope], str | None] | None = None,
        find_stack: Callable[[], Any] | None = None,
    ) -> ASGIApp:
        """Return an app with the outermost middlewares: request context, tracing, lifespan.

        For adapters whose framework has a better place for the other middlewares.

        Args:
            app: The app, with the idempotency middleware somewhere in it.
            inside: Returns the classes of the middlewares inside the idempotency middleware, at
                the start; a log line names those that belong outside of it.
            around: Returns the classes of the application's middlewares around the idempotency
                middleware, at the start; log lines name the parts of a response that replays
                lose, and requests that are not distinguished.
            handler_policies: Returns the policies that are set on single handlers.
            find_route: Returns the route of a request that no router has seen.
            find_stack: Returns the outermost app that requests of the application go through.
        """

        def policies() -> list[IdempotencyPolicy]:
            of_routes = filter(None, self.idempotency_routes.values())
            return [self.idempotency, *of_routes, *handler_policies()]

        def look() -> None:
            warn_of_misplaced(policies, inside)
            warn_of_sessions(policies, inside, around)
            warn_of_lost_sessions(policies, lambda: (*around(), *inside()))

        watched = SessionCookieMiddleware(app, policies)
        lifespan = LifespanMiddleware(watched, self.engine, on_start=look)
        return RequestContextMiddleware(
            TracingMiddleware(
                lifespan,
                telemetry=self.telemetry,
                find_route=find_route,
                find_stack=find_stack,
            ),
            header_names=self.request_id_headers,
            policy=self.request_ids,
            baggage_keys=self.telemetry.baggage_keys,
        )

    async def migrate(self) -> None:
        """Create the database's tables, or bring them up to date, and do nothing else.

        A start does this as well. Use it with a database role that may change tables, if the
        application's own role may not.

        Raises:
            StorageError: The database cannot be used; the message names it.
        """
        await self.engine.migrate()

    async def __aenter__(self) -> Self:
        """Start, and resume interrupted workflows; for scripts, workers and tests."""
        await self.engine.start()
        self.engine.recover()
        return self

    def __enter__(self) -> Self:
        """Start on an event loop of our own, for programs without async code."""
        self.thread_calls.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the active runs, for ``drain_timeout`` seconds at most, and stop."""
        self.thread_calls.stop()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the active runs, for ``drain_timeout`` seconds at most, and stop."""
        await self.engine.stop()
