"""Which apps the HTTP benchmark serves, and which requests each of them gets."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "APPS",
    "BARE",
    "CORRELATION",
    "HEADER",
    "IDEMKIT",
    "OPENTELEMETRY",
    "OTEL",
    "OURS",
    "TRACING",
    "App",
]

OURS, TRACING, BARE, CORRELATION, OPENTELEMETRY, HEADER, IDEMKIT, DBOS, LIMIT = (
    f"benchmarks.http_contestants.{name}"
    for name in (
        "durable",
        "tracing",
        "bare",
        "correlation_id",
        "opentelemetry",
        "idempotency_header",
        "idemkit",
        "dbos",
        "raw_group",
    )
)
PLAIN, KEYED = ("plain",), ("new key", "replay")


@dataclass(frozen=True)
class App:
    """An app in a server of its own.

    Attributes:
        name: Its name in the table.
        factory: Makes the app.
        kinds: The requests; see ``http_client``.
        database: The database that it needs; ``None`` for none.
        needs: The packages of a peer.
        is_short: True if it is in the short run as well.
    """

    name: str
    factory: str
    kinds: tuple[str, ...] = PLAIN
    database: str | None = None
    needs: tuple[str, ...] = ()
    is_short: bool = True


OTEL = ("opentelemetry-instrumentation-asgi", "opentelemetry-sdk")

APPS = (
    App("raw: bare", f"{BARE}:raw"),
    App("raw: request context", f"{OURS}:request_context"),
    App("raw: problem details", f"{OURS}:problem_details", is_short=False),
    App("raw: lifespan", f"{OURS}:lifespan", database="sqlite", is_short=False),
    App("raw: idempotency", f"{OURS}:idempotency", (*PLAIN, *KEYED), "sqlite"),
    App("raw: whole stack", f"{OURS}:stack", (*PLAIN, *KEYED), "sqlite"),
    App("raw: whole stack", f"{OURS}:stack", KEYED, "postgres", is_short=False),
    App("raw: whole stack, traced", f"{TRACING}:stack", PLAIN, "sqlite", needs=OTEL),
    App("raw: whole stack, 2 steps", f"{OURS}:stack_two_steps", KEYED, "sqlite"),
    App("raw: whole stack, 2 steps", f"{OURS}:stack_two_steps", KEYED, "postgres"),
    App("raw: asgi-correlation-id", f"{CORRELATION}:raw", needs=("asgi-correlation-id",)),
    App("raw: opentelemetry, batch", f"{OPENTELEMETRY}:raw", needs=OTEL),
    App(
        "raw: opentelemetry, not sampled",
        f"{OPENTELEMETRY}:raw_not_sampled",
        needs=OTEL,
        is_short=False,
    ),
    App(
        "raw: asgi-idempotency-header, memory",
        f"{HEADER}:memory",
        KEYED,
        needs=("asgi-idempotency-header",),
    ),
    App("raw: idemkit, memory", f"{IDEMKIT}:memory", KEYED, needs=("idemkit",)),
    App("raw: idemkit", f"{IDEMKIT}:postgres", KEYED, "postgres", ("idemkit",)),
    App("fastapi: bare", f"{BARE}:fastapi"),
    App("fastapi: whole stack", f"{OURS}:fastapi_stack", database="sqlite"),
    App(
        "fastapi: asgi-correlation-id",
        f"{CORRELATION}:fastapi",
        needs=("asgi-correlation-id",),
        is_short=False,
    ),
    App("fastapi: opentelemetry, batch", f"{OPENTELEMETRY}:fastapi", needs=OTEL, is_short=False),
    App("fastapi: asgi-durable, 2 steps", f"{OURS}:fastapi_two_steps", KEYED, "sqlite"),
    App("fastapi: asgi-durable, 2 steps", f"{OURS}:fastapi_two_steps", KEYED, "postgres"),
    App("fastapi: asgi-durable, workflow", f"{OURS}:fastapi_workflow", KEYED, "postgres"),
    App("fastapi: dbos, 2 steps", f"{DBOS}:fastapi_two_steps", KEYED, "sqlite", ("dbos",)),
    App("fastapi: dbos, 2 steps", f"{DBOS}:fastapi_two_steps", KEYED, "postgres", ("dbos",)),
    App("fastapi: raw_group, 2 steps, no key", f"{LIMIT}:fastapi_two_steps", PLAIN, "sqlite"),
    App("fastapi: raw_group, 2 steps, no key", f"{LIMIT}:fastapi_two_steps", PLAIN, "postgres"),
)
