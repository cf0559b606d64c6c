"""Alembic's autogenerate beside the library's tables."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from asgi_durable import Durable
from asgi_durable.alembic import PREFIX, include_name, include_object
from asgi_durable.storage import tables
from asgi_durable.storage.postgres.rows import FENCES

pytestmark = pytest.mark.needs_sessions("it sets options of its own connections")

ITS_OWN = sa.MetaData()
sa.Table(
    "orders",
    ITS_OWN,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("item", sa.Text, index=True),
)


def engine_for(url: str) -> sa.Engine:
    """Return an engine of the application's, as Alembic's ``env.py`` has it."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return sa.create_engine(url)
    search_path = parse_qs(parts.query).get("search_path", ["public"])[0]
    return sa.create_engine(
        parts._replace(scheme="postgresql+psycopg", query="").geturl(),
        connect_args={"options": f"-c search_path={search_path}"},
    )


@pytest.fixture
def engine(database_url: str, tmp_path: Path) -> sa.Engine:
    """An application's database with its tables, the step log and records of transactions."""
    log = Durable(database_url)
    beside = Durable(f"sqlite:///{tmp_path}/log.db", application_url=database_url)
    asyncio.run(log.migrate())
    asyncio.run(beside.migrate())
    engine = engine_for(database_url)
    ITS_OWN.create_all(engine)
    return engine


def differences(engine: sa.Engine, metadata: sa.MetaData = ITS_OWN, **options: Any) -> list[Any]:
    """Return the operations that autogenerate would write."""
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts=options)
            return compare_metadata(context, metadata)
    finally:
        engine.dispose()


def mine(*about: Any) -> bool:
    """A rule of the application's for autogenerate, beside the library's."""
    return include_object(*about) and about[1] != "legacy"


@pytest.mark.parametrize(
    "options",
    [{"include_object": include_object}, {"include_name": include_name}, {"include_object": mine}],
    ids=["object", "name", "composed"],
)
def test_autogenerate_leaves_our_tables_alone(engine: sa.Engine, options: dict[str, Any]) -> None:
    assert differences(engine, **options) == []


def test_autogenerate_still_sees_the_applications_own(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE orders ADD COLUMN late INTEGER"))
        connection.execute(sa.text("CREATE TABLE forgotten (id INTEGER)"))

    found = differences(engine, include_object=include_object)

    assert sorted(str(each[0]) for each in found) == ["remove_column", "remove_table"]


def test_without_it_autogenerate_would_drop_the_step_log(engine: sa.Engine) -> None:
    dropped = [each[1].name for each in differences(engine) if each[0] == "remove_table"]

    assert {"asgi_durable_steps", "asgi_durable_workflows"} <= set(dropped)
    assert "asgi_durable_transactions" in dropped


def test_other_schemas_are_no_difference_either(postgres_url: str) -> None:
    url = postgres_url.partition("&search_path=")[0]
    asyncio.run(Durable(url).migrate())
    schema = parse_qs(urlsplit(url).query)["schema"][0]

    def only_this(names: Callable[..., bool]) -> Callable[..., bool]:
        return lambda name, type_, parents: (
            name == schema if type_ == "schema" else names(name, type_, parents)
        )

    def found(names: Callable[..., bool], **options: Any) -> list[Any]:
        options |= {"include_schemas": True, "include_name": only_this(names)}
        return differences(engine_for(url), sa.MetaData(), **options)

    assert found(lambda *_: True) != []
    assert found(lambda *_: True, include_object=include_object) == []
    assert found(include_name) == []
    assert not include_name("asgi_durable", "schema", {})
    assert include_name(None, "schema", {})


def test_every_table_of_ours_has_the_prefix() -> None:
    assert all(name.startswith(PREFIX) for name in (*tables.metadata.tables, FENCES))


def test_importing_it_needs_no_alembic() -> None:
    program = "import sys; sys.modules['alembic'] = None; import asgi_durable.alembic"
    subprocess.run([sys.executable, "-c", program], check=True)
