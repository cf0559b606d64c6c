"""libpq gets the same settings of a database that asyncpg reads from its DSN."""

from __future__ import annotations

import pytest

from asgi_durable.storage.postgres.connections.conninfo import KEEPALIVES, connection_parameters
from asgi_durable.storage.postgres.connections.database import PostgresDatabase


def parameters(url: str) -> list[dict[str, str]]:
    dsns = PostgresDatabase.from_url(url).dsns
    found = [connection_parameters(dsn, timeout_seconds=2.5) for dsn in dsns]
    return [{k: v for k, v in each.items() if k not in KEEPALIVES} for each in found]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "postgresql://u%40x:p%3A%2Fw@db:5433/a%20b?sslmode=require&schema=s",
            {
                "user": "u@x",
                "password": "p:/w",
                "host": "db",
                "port": "5433",
                "dbname": "a b",
                "sslmode": "require",
            },
        ),
        ("postgresql:///a?host=/run/pg", {"host": "/run/pg", "dbname": "a"}),
        ("postgresql://[::1]:5433/a", {"host": "::1", "port": "5433", "dbname": "a"}),
        ("postgresql://h?database=b&user=u", {"host": "h", "dbname": "b", "user": "u"}),
        (
            "postgresql://h/a?statement_timeout=5s&search_path=a%20b%5C",
            {
                "host": "h",
                "dbname": "a",
                "options": "-c search_path=a\\ b\\\\ -c statement_timeout=5s",
            },
        ),
    ],
)
def test_a_url_is_read_as_asyncpg_reads_it(url: str, expected: dict[str, str]) -> None:
    assert parameters(url) == [
        {"application_name": "asgi-durable", **expected, "connect_timeout": "3"}
    ]


def test_each_host_has_parameters_of_its_own() -> None:
    found = parameters("postgresql://u@a:1,b:2/d?target_session_attrs=primary")

    assert [(each["host"], each["port"]) for each in found] == [("a", "1"), ("b", "2")]
    assert {each["target_session_attrs"] for each in found} == {"primary"}
