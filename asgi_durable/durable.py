"""``Durable``: the one object that an application holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, cast, overload

from asgi_durable.codec import Codec, JsonCodec
from asgi_durable.context import RequestContext, current_request
from asgi_durable.decorating import AsyncFunction, Decorator, durable_function
from asgi_durable.engine.call import WorkflowOptions
from asgi_durable.engine.engine import Engine
from asgi_durable.engine.handle import WorkflowHandle
from asgi_durable.engine.limits import Limits, positive_seconds
from asgi_durable.engine.registry import (
    StepDefinition,
    TransactionDefinition,
    WorkflowDefinition,
)
from asgi_durable.errors import DurableUsageError
from asgi_durable.ids import step_key
from asgi_durable.middleware.asgi import ASGIApp
from asgi_durable.middleware.idempotency import IdempotencyMiddleware
from asgi_durable.middleware.idempotency_policy import IdempotencyPolicy
from asgi_durable.middleware.lifespan import LifespanMiddleware
from asgi_durable.middleware.problem_details import ProblemDetailsMiddleware
from asgi_durable.middleware.request_context import RequestContextMiddleware
from asgi_durable.middleware.tracing import TracingMiddleware
from asgi_durable.retry import RetryPolicy
from asgi_durable.storage.entry_point import find_storage
from asgi_durable.storage.protocol import ApplicationDatabase
from asgi_durable.telemetry import Telemetry
from asgi_durable.telemetry_port import current_request_span
from asgi_durable.workflow_calls import WorkflowCalls

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

__all__ = ["Durable"]

P = ParamSpec("P")
R = TypeVar("R")

URL_VARIABLE = "ASGI_DURABLE_URL"
DEFAULT_URL = "sqlite:///asgi_durable.db"


class Durable:
    """Makes an application's functions and requests durable.

    Nothing connects before the application starts, so decorators can run at import. Several
    instances can live in one process, each with a database of its own.

    Args:
        url: The database, ``sqlite:///orders.db`` say. By default the environment variable
            ``ASGI_DURABLE_URL``, else ``sqlite:///asgi_durable.db``. The SQLite adapter reads
            ``?synchronous=`` (``FULL``, the default, survives a loss of power; ``NORMAL`` may
            lose the last commits to one) and ``?busy_timeout=`` (seconds, 5 by default).
        application_url: The database that ``durable.session`` is for, where it is another
            one than the step log's. A transaction's record is then kept in a table of its
            own beside the application's data, ``asgi_durable_transactions``.
        codec: Writes values into the step log; readable JSON that keeps types by default.
        idempotency: Which requests an ``Idempotency-Key`` makes durable.
        idempotency_routes: Other policies by route, ``"POST /orders/{order_id}"`` say, or
            ``"/hooks/{rest:path}"``; the first that fits counts. ``None`` for a route that keys
            have no effect on.
        request_id_headers: Headers that a request id is read from; the first one is sent.
        drain_timeout: Seconds that a stop waits for runs before it interrupts them.
        storage_patience: Seconds that a failing storage is tried before a run is given up,
            to be taken up again later.
        lease: Seconds that the process counts as alive without a sign of life. It gives one
            every third of that, and its workflows are taken over by other processes when
            there was none for so long. A process that ended is noticed sooner.
        telemetry: Where spans, figures and log lines go; by default to the OpenTelemetry
            providers that the application has set, if it has.

    Raises:
        DurableUsageError: No storage adapter is installed for the URL's scheme.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        application_url: str | None = None,
        codec: Codec | None = None,
        idempotency: IdempotencyPolicy | None = None,
        idempotency_routes: Mapping[str, IdempotencyPolicy | None] | None = None,
        request_id_headers: Sequence[str] = ("X-Request-ID",),
        drain_timeout: float = 5.0,
        storage_patience: float = 30.0,
        lease: float = 15.0,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.url = url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
        self.idempotency = idempotency or IdempotencyPolicy()
        self.idempotency_routes = dict(idempotency_routes or {})
        self.request_id_headers = tuple(request_id_headers)
        self.application_url = application_url
        self.telemetry = telemetry or Telemetry()
        # Tells at once that there is none; which one, the start does, as tests change the URL.
        find_storage(self.url)
        self.engine = Engine(
            lambda: find_storage(self.url).load()(self.url),
            self._open_application_database,
            codec or JsonCodec(),
            Limits(
                drain_timeout_seconds=drain_timeout,
                patience_seconds=storage_patience,
                lease_seconds=positive_seconds(lease, "lease"),
                request_lifetime_seconds=self.idempotency.max_lifetime,
            ),
            self.telemetry,
        )

    def _open_application_database(self) -> ApplicationDatabase | None:
        url = self.application_url
        if url is None or url == self.url:
            return None
        database: ApplicationDatabase = find_storage(url).load().application_database(url)
        return database

    # Decorators

    @overload
    def workflow(self, function: AsyncFunction[P, R], /) -> AsyncFunction[P, R]: ...

    @overload
    def workflow(
        self, /, *, name: str | None = None, max_recovery_attempts: int | None = ...
    ) -> Decorator: ...

    def workflow(
        self,
        function: Any = None,
        /,
        *,
        name: str | None = None,
        max_recovery_attempts: int | None = 20,
    ) -> Any:
        """Make an ``async def`` function a workflow; calling it runs it durably.

        Args:
            function: The function, where the decorator is used bare.
            name: What the log calls it; its qualified name by default.
            max_recovery_attempts: How often it is taken up again after its process died, in
                a row and without any progress, until it is set aside as
                ``RETRIES_EXCEEDED``; ``None`` for ever. At least two more are made, in which
                it runs by itself, so that it is not blamed for another's doing.
        """

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            definition = WorkflowDefinition(
                function,
                name=name,
                registry=self.engine.registry,
                max_recovery_attempts=max_recovery_attempts,
            )
            self.engine.registry.add_workflow(definition)
            options = WorkflowOptions()
            return durable_function(
                definition,
                lambda args, kwargs: self.engine.call_workflow(definition, args, kwargs, options),
            )

        return decorate if function is None else decorate(function)

    @overload
    def step(self, function: AsyncFunction[P, R], /) -> AsyncFunction[P, R]: ...

    @overload
    def step(
        self,
        /,
        *,
        name: str | None = None,
        retry: RetryPolicy | None = ...,
        timeout: float | None = None,
    ) -> Decorator: ...

    def step(
        self,
        function: Any = None,
        /,
        *,
        name: str | None = None,
        retry: RetryPolicy | None = RetryPolicy(),  # noqa: B008  frozen
        timeout: float | None = None,
    ) -> Any:
        """Make an ``async def`` function a step: recorded inside a workflow, plain outside.

        Args:
            function: The function, where the decorator is used bare.
            name: What the log calls it; its qualified name by default.
            retry: When it is tried again; three attempts by default, ``None`` for one.
            timeout: Seconds for each attempt.
        """

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            definition = StepDefinition(
                function,
                name=name,
                registry=self.engine.registry,
                retry=retry,
                timeout_seconds=timeout,
            )
            return durable_function(
                definition, lambda args, kwargs: self.engine.call_step(definition, args, kwargs)
            )

        return decorate if function is None else decorate(function)

    @overload
    def transaction(self, function: AsyncFunction[P, R], /) -> AsyncFunction[P, R]: ...

    @overload
    def transaction(
        self, /, *, name: str | None = None, isolation_level: str | None = None
    ) -> Decorator: ...

    def transaction(
        self,
        function: Any = None,
        /,
        *,
        name: str | None = None,
        isolation_level: str | None = None,
    ) -> Any:
        """Make an ``async def`` function a transaction with ``durable.session``.

        Inside a workflow or a keyed request its rows and its record commit together, exactly
        once; elsewhere it is a plain transaction.

        Args:
            function: The function, where the decorator is used bare.
            name: What the log calls it; its qualified name by default.
            isolation_level: ``"SERIALIZABLE"`` say; the database's default with ``None``. A
                transaction that the database gives up for another one is tried again.
        """

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            definition = TransactionDefinition(
                function,
                name=name,
                registry=self.engine.registry,
                isolation_level=isolation_level,
            )
            return durable_function(
                definition,
                lambda args, kwargs: self.engine.call_transaction(definition, args, kwargs),
            )

        return decorate if function is None else decorate(function)

    def register_type(self, hint: object) -> None:
        """Let values of a class be recorded that no annotation names."""
        self.engine.registry.codec.register(hint)

    # Workflows

    def options(self, *, workflow_id: str | None = None) -> WorkflowCalls:
        """Return the workflow calls with options.

        Args:
            workflow_id: The workflow's id; one that exists is attached to instead of run.
        """
        return WorkflowCalls(self.engine, WorkflowOptions(workflow_id=workflow_id))

    def run_workflow(
        self, function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]:
        """Run a workflow and return its result; the same as calling it."""
        return self.options().run_workflow(function, *args, **kwargs)

    def start_workflow(
        self, function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, WorkflowHandle[R]]:
        """Start a workflow in the background; return its handle once the start is durable."""
        return self.options().start_workflow(function, *args, **kwargs)

    async def retrieve_workflow(self, workflow_id: str) -> WorkflowHandle[Any]:
        """Return the handle of a workflow that exists.

        Raises:
            WorkflowNotFoundError: No workflow has the id.
        """
        await self.engine.find_workflow(workflow_id)
        return WorkflowHandle(self.engine, workflow_id)

    # Context

    @property
    def workflow_id(self) -> str | None:
        """The current workflow's id, or the current keyed request's; ``None`` outside."""
        frame = self.engine.frame()
        return frame.run.workflow_id if frame is not None and frame.run is not None else None

    @property
    def step_id(self) -> int | None:
        """The current step's place in the log, from 0; ``None`` outside a step."""
        frame = self.engine.frame()
        return frame.step_number if frame is not None else None

    def idempotency_key_for_step(self) -> str:
        """Return a key for the current step, to hand on to a service as its idempotency key.

        It is the same however often the step is tried, in any process, and no other step's.

        Returns:
            26 letters and digits; nobody can tell the workflow's id from it.

        Raises:
            DurableUsageError: The current code is in no step of a workflow or keyed request.
        """
        frame = self.engine.frame()
        if frame is None or frame.run is None or frame.step_number is None:
            msg = "idempotency_key_for_step() is for code in a step, where a place is recorded"
            raise DurableUsageError(msg)
        return step_key(frame.run.workflow_id, frame.step_number)

    @property
    def request_id(self) -> str | None:
        """The id of the request that began the current work, after a restart as well."""
        frame = self.engine.frame()
        if frame is not None and frame.run is not None:
            return frame.run.workflow.request_id
        request = current_request.get()
        return request.request_id if request is not None else None

    @property
    def request(self) -> RequestContext | None:
        """The request being handled; ``None`` outside, and in what a restart resumed."""
        return current_request.get()

    @property
    def span(self) -> Any:
        """The OpenTelemetry span of the current run, else of the request; ``None`` without."""
        frame = self.engine.frame()
        span = frame.run.observed.span if frame is not None and frame.run is not None else None
        return span or current_request_span.get()

    @property
    def session(self) -> AsyncSession:
        """The current transaction's session; ``None`` outside a transaction."""
        frame = self.engine.frame()
        # Typed for where it is used: code inside a transaction always has one.
        return cast("AsyncSession", frame.session if frame is not None else None)

    # Life

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Return an ASGI app with the whole stack around it."""
        return self.wrap_outside(
            IdempotencyMiddleware(
                ProblemDetailsMiddleware(app),
                self.engine,
                policy=self.idempotency,
                routes=self.idempotency_routes,
            )
        )

    def wrap_outside(self, app: ASGIApp) -> ASGIApp:
        """Return an app with what belongs around everything: request context, span, lifespan.

        For adapters whose framework has a better place for the rest.
        """
        return RequestContextMiddleware(
            TracingMiddleware(LifespanMiddleware(app, self.engine), telemetry=self.telemetry),
            header_names=self.request_id_headers,
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

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the runs under way, for ``drain_timeout`` at most, and stop."""
        await self.engine.stop()
