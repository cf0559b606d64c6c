"""Databases of schema version 1, from before the ids of requests were made with a secret."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from asgi_durable.storage import tables
from asgi_durable.storage.postgres.schema import ADDITIONS
from asgi_durable.storage.records import ResponseRecord, WorkflowRecord, WorkflowState
from asgi_durable.storage.schema import MIGRATIONS
from support.databases.postgres import without_our_parameters
from support.records import request, response

HOUR_US = 3600 * 1_000_000
# Of `POST /` with neither a body nor a media type, as version 1 made it.
FINGERPRINT = "v1:d100efef5ef8f8283485b362016095cd669bebfd40541335471e4eb3fc9bbc72"


async def create_version_1(url: str, *requests: tuple[WorkflowRecord, ResponseRecord]) -> None:
    """Create the tables of version 1 in an empty database, with finished requests."""
    rows = [(tables.workflows, _values(tables.workflows, workflow)) for workflow, _ in requests]
    rows += [(tables.responses, _values(tables.responses, answer)) for _, answer in requests]
    if url.startswith("sqlite"):
        _create_file(url, rows)
    else:
        await _create_schema(url, rows)


def finished(workflow_id: str, **fields: Any) -> tuple[WorkflowRecord, ResponseRecord]:
    """Return a request that was finished an hour ago and expires in another one."""
    now_us = time.time_ns() // 1000
    values = {
        "state": WorkflowState.SUCCESS,
        "name": "POST /",
        "fingerprint": FINGERPRINT,
        "executor_id": None,
        "created_at_us": now_us - HOUR_US,
        "updated_at_us": now_us - HOUR_US,
    }
    kept_until = {"expires_at_us": now_us + HOUR_US, "forgotten_at_us": now_us + HOUR_US}
    answer = response(workflow_id, b"a former answer", **kept_until | fields)
    return request(workflow_id, **values), answer


async def execute(url: str, statement: str) -> None:
    """Run a statement on a database of either kind; it names the tables without a schema."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(urlsplit(url).path[1:])) as connection, connection:
            connection.execute(statement)
        return
    connection = await asyncpg.connect(without_our_parameters(url), statement_cache_size=0)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _values(table: sa.Table, record: Any) -> list[Any]:
    return [getattr(record, column.name) for column in table.columns]


def _create_file(url: str, rows: list[tuple[sa.Table, list[Any]]]) -> None:
    with closing(sqlite3.connect(urlsplit(url).path[1:])) as connection, connection:
        for statement in MIGRATIONS[0](make_url(url).get_dialect()()):
            connection.execute(statement)
        connection.execute("CREATE TABLE asgi_durable_schema (version INTEGER NOT NULL)")
        connection.execute("INSERT INTO asgi_durable_schema VALUES (1)")
        for table, values in rows:
            marks = ", ".join("?" * len(values))
            connection.execute(f"INSERT INTO {table.name} VALUES ({marks})", values)


async def _create_schema(url: str, rows: list[tuple[sa.Table, list[Any]]]) -> None:
    dialect = make_url("postgresql+asyncpg://").get_dialect()()
    (schema,) = parse_qs(urlsplit(url).query)["schema"]
    connection = await asyncpg.connect(without_our_parameters(url), statement_cache_size=0)
    try:
        await connection.execute(f"CREATE SCHEMA {schema}")
        await connection.execute(f"SET search_path TO {schema}")
        for statement in (*MIGRATIONS[0](dialect), *ADDITIONS[1](dialect)):
            await connection.execute(statement)
        await connection.execute("CREATE TABLE asgi_durable_schema (version integer NOT NULL)")
        await connection.execute("INSERT INTO asgi_durable_schema VALUES (1)")
        for table, values in rows:
            marks = ", ".join(f"${number}" for number in range(1, len(values) + 1))
            await connection.execute(f"INSERT INTO {table.name} VALUES ({marks})", *values)
    finally:
        await connection.close()
