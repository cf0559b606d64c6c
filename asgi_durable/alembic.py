"""Filters for Alembic's autogenerate, which must leave the library's tables alone.

The library migrates its tables itself, at the start or by ``asgi-durable migrate``. In
``env.py``::

    from asgi_durable.alembic import include_object

    context.configure(
        connection=connection, target_metadata=target_metadata, include_object=include_object
    )

Combine it with a function of your own like this::

    def include(*arguments):
        return include_object(*arguments) and my_include_object(*arguments)

Importing this module needs no Alembic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["include_name", "include_object"]

# All tables of the library have it, also the one in the application's own database.
PREFIX = "asgi_durable_"
SCHEMA = "asgi_durable"


def include_object(
    object_: Any,
    name: str | None,
    type_: str,
    reflected: object,
    compare_to: Any,
) -> bool:
    """Tell Alembic whether an object is the application's; for ``context.configure``.

    Args:
        object_: A table, or a part of one.
        name: The object's name.
        type_: ``"table"``, ``"column"``, ``"index"`` and so on.
        reflected: True if the object was read from the database.
        compare_to: The object's counterpart, if there is one.

    Returns:
        False for the library's tables, in any schema, and for all parts of them.
    """
    del reflected, compare_to
    if type_ == "table":
        return not _is_ours(name)
    return not _is_ours(getattr(getattr(object_, "table", None), "name", None))


def include_name(name: str | None, type_: str, parent_names: Mapping[str, str | None]) -> bool:
    """Tell Alembic by its name whether an object is the application's.

    With it, Alembic does not even read the library's tables from the database.

    Args:
        name: The name of a schema, of a table, or of a part of one; ``None`` for the default
            schema.
        type_: ``"schema"``, ``"table"``, ``"column"``, ``"index"`` and so on.
        parent_names: The names of the schema and the table that the object belongs to.

    Returns:
        False for the library's schema and tables, and for all parts of them.
    """
    if type_ == "schema":
        return name != SCHEMA
    if type_ == "table":
        return not _is_ours(name)
    return not _is_ours(parent_names.get("table_name"))


def _is_ours(table: str | None) -> bool:
    return table is not None and table.startswith(PREFIX)
