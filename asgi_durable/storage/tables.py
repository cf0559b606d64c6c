"""SQLAlchemy Core tables, shared by the storage adapters.

Column names are the fields of the records. ``rows.py`` relies on the order of the columns.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    and_,
)

__all__ = [
    "executors",
    "metadata",
    "pieces",
    "responses",
    "schema_version",
    "secrets",
    "steps",
    "workflows",
]

# Named constraints, so that a later migration can drop them on every database.
metadata = MetaData(
    naming_convention={"pk": "pk_%(table_name)s", "ix": "ix_%(table_name)s_%(column_0_name)s"}
)

schema_version = Table(
    "asgi_durable_schema",
    metadata,
    Column("version", Integer, nullable=False),
)

# One row for each executor that is ALIVE, and for each that is RELEASED (it stopped by itself) or
# DEAD (another executor found it so) and still owns workflows. One without a row is dead too.
executors = Table(
    "asgi_durable_executors",
    metadata,
    Column("executor_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("started_at_us", BigInteger, nullable=False),
    # By these the others notice its death; each adapter has its own way. If the executor is not
    # alive, the first is the time at which its lease ended, it left, or it was found dead.
    Column("lease_expires_at_us", BigInteger),
    Column("session_lock", Integer),
    PrimaryKeyConstraint("executor_id"),
    sqlite_with_rowid=False,
)

workflows = Table(
    "asgi_durable_workflows",
    metadata,
    Column("workflow_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("executor_id", Text),
    Column("attempts", Integer, nullable=False),
    Column("parent_id", Text),
    Column("parent_step", Integer),
    Column("awaited", Boolean, nullable=False),
    Column("request_id", Text),
    Column("fingerprint", Text),
    Column("input", LargeBinary),
    Column("output", LargeBinary),
    Column("error", LargeBinary),
    # Microseconds as an integer, as SQLite has no type for times.
    Column("created_at_us", BigInteger, nullable=False),
    Column("updated_at_us", BigInteger, nullable=False),
    Column("crashes", Integer, nullable=False),
    Column("crashed_at_entry", Integer, nullable=False),
    Column("trace_context", Text),
    Column("retry_at_us", BigInteger),
    Column("last_span", Text),
    PrimaryKeyConstraint("workflow_id"),
)
Index(
    "ix_asgi_durable_workflows_parent",
    workflows.c.parent_id,
    sqlite_where=workflows.c.parent_id.is_not(None),
    postgresql_where=workflows.c.parent_id.is_not(None),
)
Index(
    "ix_asgi_durable_workflows_pending",
    workflows.c.executor_id,
    workflows.c.fingerprint,
    workflows.c.workflow_id,
    sqlite_where=workflows.c.state == "PENDING",
    postgresql_where=workflows.c.state == "PENDING",
)
# Requests that any process may resume, as their input is stored.
_is_recoverable = and_(
    workflows.c.state == "PENDING",
    workflows.c.fingerprint.is_not(None),
    workflows.c.input.is_not(None),
)
Index(
    "ix_asgi_durable_workflows_recoverable",
    workflows.c.executor_id,
    workflows.c.workflow_id,
    sqlite_where=_is_recoverable,
    postgresql_where=_is_recoverable,
)
# Requests without a response, to find those that have not changed for long.
_is_unanswered = and_(workflows.c.state == "PENDING", workflows.c.fingerprint.is_not(None))
Index(
    "ix_asgi_durable_workflows_unanswered",
    workflows.c.updated_at_us,
    sqlite_where=_is_unanswered,
    postgresql_where=_is_unanswered,
)

steps = Table(
    "asgi_durable_steps",
    metadata,
    Column("workflow_id", Text, nullable=False),
    Column("step_number", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("output", LargeBinary),
    Column("error", LargeBinary),
    Column("finished_at_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("workflow_id", "step_number"),
)

responses = Table(
    "asgi_durable_responses",
    metadata,
    Column("workflow_id", Text, nullable=False),
    Column("status_code", Integer, nullable=False),
    Column("headers", LargeBinary, nullable=False),
    Column("body", LargeBinary),
    Column("expires_at_us", BigInteger, nullable=False),
    Column("forgotten_at_us", BigInteger, nullable=False),
    Column("stream_end", BigInteger),
    PrimaryKeyConstraint("workflow_id"),
)
Index("ix_asgi_durable_responses_expires", responses.c.expires_at_us)

# Chunks of responses that are streamed while they are recorded.
pieces = Table(
    "asgi_durable_pieces",
    metadata,
    Column("workflow_id", Text, nullable=False),
    Column("end_offset", BigInteger, nullable=False),
    Column("cut_to", BigInteger),
    Column("data", LargeBinary, nullable=False),
    PrimaryKeyConstraint("workflow_id", "end_offset"),
)

# The secret that makes ids impossible to guess. Its value is never logged.
secrets = Table(
    "asgi_durable_secrets",
    metadata,
    Column("name", Text, nullable=False),
    Column("value", LargeBinary, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    # True while the database may have requests whose ids were made without it.
    Column("added_later", Boolean, nullable=False),
    PrimaryKeyConstraint("name"),
    sqlite_with_rowid=False,
)
