"""``Durable``: the one object that an application holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar, overload

from asgi_durable.codec.json_codec import Codec, JsonCodec
from asgi_durable.engine.blocking_engine import BlockingEngine
from asgi_durable.engine.engine import Engine
from asgi_durable.engine.process.definitions import StepDefinition
from asgi_durable.engine.process.registry import Registry
from asgi_durable.engine.process.settings import Limits, positive_seconds
from asgi_durable.engine.runs.call import WorkflowOptions
from asgi_durable.engine.workflows.handle import WorkflowHandle
from asgi_durable.errors import DurableUsageError
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
from asgi_durable.verbs.blocking import Blocking
from asgi_durable.verbs.current_context import CurrentContext
from asgi_durable.verbs.decorators import Decorators, called_step, called_workflow
from asgi_durable.verbs.workflow_calls import WorkflowCalls

if TYPE_CHECKING:
    pass

__all__ = ["Durable"]

P = ParamSpec("P")
R = TypeVar("R")

URL_VARIABLE = "ASGI_DURABLE_URL"
DEFAULT_URL = "sqlite:///asgi_durable.db"


class Durable(Decorators, CurrentContext, WorkflowCalls):
    """Makes an application's functions and requests durable.

    Nothing connects before the application starts, so decorators can run at import. Several
    instances can live in one process, each with a database of its own.

    Args:
        url: The database, ``sqlite:///orders.db`` say. By default the environment variable
            ``ASGI_DURABLE_URL``, else ``sqlite:///asgi_durable.db``. A relative file is relative
            to the working directory in which the instance is made. The SQLite adapter reads
            ``?synchronous=`` (``FULL``, the default, survives a loss of power; ``NORMAL`` may
            lose the last commits to one) and ``?busy_timeout=`` (seconds, 5 by default).
        application_url: The database that ``durable.session`` is for, where it is another
            one than the step log's. A transaction's record is then kept in a table of its
            own beside the application's data, ``asgi_durable_transactions``.
        codec: Writes what no annotation describes; readable JSON that keeps types by default.
        payloads: How large recorded values may be, and how all that is recorded is compressed and
            encrypted; by default 16 MiB, and neither.
        idempotency: Which requests an ``Idempotency-Key`` makes durable.
        idempotency_routes: Other policies by route, ``"POST /orders/{order_id}"`` say, or
            ``"/hooks/{rest:path}"``; the first that fits counts. ``None`` for a route that keys
            have no effect on.
        request_id_headers: Headers that a request id is read from; the first one is sent.
        request_ids: Where it comes from otherwise, and which ids are accepted.
        drain_timeout: Seconds that a stop waits for runs before it interrupts them.
        storage_patience: Seconds that a failing storage is tried before a run is given up,
            to be taken up again later.
        lease: Seconds that the process counts as alive without a sign of life. It gives one
            every third of that, and its workflows are taken over by other processes when
            there was none for so long. A process that ended is noticed sooner.
        telemetry: Where spans, figures and log lines go; by default to the OpenTelemetry
            providers that the application has set, if it has.

    Attributes:
        blocking: The verbs for code that is not async, in a thread without an event loop.

    Raises:
        DurableUsageError: A URL has no scheme, or no storage adapter is installed for it; a
            header's name is none; there are encryption keys, and no library for them; or a policy
            asks for a single transaction, which two databases do not have.
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
        # Relative files are relative to it, whatever the working directory is at the start.
        self._folder = working_folder()
        self._refuse_two_databases_in_one_transaction()
        # Tells at once that there is none; which one, the start does, as tests change the URL.
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

    # Workflows

    def options(
        self,
        *,
        workflow_id: str | None = None,
        on_conflict: Literal["raise", "attach"] = "raise",
    ) -> WorkflowCalls:
        """Return the workflow calls with options.

        Args:
            workflow_id: The workflow's id; one that exists is attached to instead of run.
            on_conflict: What happens where the workflow with the id was given other arguments:
                ``"raise"`` a ``WorkflowConflictError``, or ``"attach"`` to it all the same.
                Arguments count that the function's parameters name, with their defaults.

        Raises:
            DurableUsageError: The id is empty, too long, not printable or reserved.
        """
        options = WorkflowOptions(workflow_id=workflow_id, on_conflict=on_conflict)
        return WorkflowCalls(self.engine, options)

    @overload
    def background(
        self, function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, str]: ...

    @overload
    def background(
        self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, str]: ...

    def background(
        self, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Coroutine[Any, Any, str]:
        """Start a workflow once its caller has ended well, as a background task that is kept.

        Its start is committed together with the answer of the request, or the result of the
        workflow, that calls this, and costs no commit of its own. Where that fails nothing is
        started, and its retry starts it. An answer that is kept counts as an end, a 4xx or a
        ``FinalError`` too. Outside of both the workflow is started at once.

        Returns:
            The workflow's id; there is no workflow with it before its caller's end.
        """
        definition, args = called_workflow(self.engine, function, args)
        return self.engine.background(definition, args, kwargs)

    @overload
    def run_step(
        self, function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]: ...

    @overload
    def run_step(
        self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]: ...

    def run_step(
        self, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Coroutine[Any, Any, Any]:
        """Call a step or a transaction; the same as calling it.

        A ``def`` function runs in a thread of the engine's, so the event loop goes on.
        """
        definition, args = called_step(self.engine, function, args)
        if isinstance(definition, StepDefinition):
            return self.engine.call_step(definition, args, kwargs)
        return self.engine.call_transaction(definition, args, kwargs)

    def sleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        """Sleep; inside a workflow or a keyed request durably.

        When it ends is recorded before it begins, by the wall clock, so that after a restart
        what is left is slept, and nothing if it is over. A stop does not wait for a workflow
        that sleeps. Elsewhere, in a step too, it is a plain sleep.

        Args:
            seconds: 0 or more, a thousand years at most. Replays keep the recorded end.

        Raises:
            DurableUsageError: They are negative, or without an end.
        """
        return self.engine.sleep(seconds)

    async def retrieve_workflow(self, workflow_id: str) -> WorkflowHandle[Any]:
        """Return the handle of a workflow that exists.

        Raises:
            WorkflowNotFoundError: No workflow has the id.
        """
        await self.engine.find_workflow(workflow_id)
        return WorkflowHandle(self.engine, workflow_id)

    def cancel_workflow(self, workflow_id: str) -> Coroutine[Any, Any, bool]:
        """Cancel a workflow or a keyed request, whichever process runs it.

        Once this returns, nothing of it is recorded or committed any more; what was, stays. Its
        code gets ``asyncio.CancelledError`` where it waits; ``def`` code ends at its next step.
        In another process that may take a second or two. Workflows that it called are cancelled
        with it; those that it started go on. Who waits for it gets ``WorkflowCancelledError``,
        and the retries of a request are answered 410.

        Returns:
            True if it is cancelled, now or before; False if it has another outcome, which
            stands.

        Raises:
            WorkflowNotFoundError: No workflow has the id.
            StorageError: It is not known to be cancelled; try again.
        """
        return self.engine.cancel_workflow(workflow_id)

    # Life

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Return an ASGI app with the whole stack around it.

        A start raises ``DurableUsageError`` where a route of the app, if it is one of Starlette,
        FastAPI or Litestar, calls the bare function of a durable one.

        Where the app opens a span for each request itself, as FastAPI does, the stack is inside
        of that and around all else; what calls the app itself does not meet the stack.
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
        """Return an app with what belongs around everything: request context, span, lifespan.

        For adapters whose framework has a better place for the rest.

        Args:
            app: The app, with idempotency somewhere in it.
            inside: Returns the classes of what is inside of idempotency, as of the start: a
                line in the log tells of those that belong outside.
            around: Returns the classes of what the application has around idempotency, as of the
                start: lines in the log tell of what replays lose by it, and of what is not told
                apart.
            handler_policies: Returns the policies that handlers have of their own.
            find_route: Returns the route of a request that no router has seen.
            find_stack: Returns what the application's requests come through first.
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

        A start does it as well. So it is for a role that may change tables, where the
        application's own may not.

        Raises:
            StorageError: The database cannot be used; the message names it.
        """
        await self.engine.migrate()

    async def __aenter__(self) -> Self:
        """Start, and resume what was interrupted; for scripts, workers and tests."""
        await self.engine.start()
        self.engine.recover()
        return self

    def __enter__(self) -> Self:
        """Start on an event loop of our own, for programs in which nothing is async."""
        self.thread_calls.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the runs under way, for ``drain_timeout`` at most, and stop."""
        self.thread_calls.stop()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the runs under way, for ``drain_timeout`` at most, and stop."""
        await self.engine.stop()
