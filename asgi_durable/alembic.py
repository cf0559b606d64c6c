"""For Alembic's autogenerate: leave the library's tables to the library.

It migrates them itself, at the start or by ``asgi-durable migrate``. In ``env.py``::

    from asgi_durable.alembic import include_object

    context.configure(
        connection=connection, target_metadata=target_metadata, include_object=include_object
    )

Together with a function of your own::

    def include(*about):
        return include_object(*about) and mine(*about)

Importing this needs no Alembic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["include_name", "include_object"]

# Of all tables, also of those that later versions have, and of one beside the application's data.
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

    False for the library's tables, in whichever schema, and for all that belongs to them.

    Args:
        object_: The table, or what belongs to one.
        name: Its name.
        type_: ``"table"``, ``"column"``, ``"index"`` and so on.
        reflected: True if it is in the database.
        compare_to: Its counterpart, if there is one.
    """
    del reflected, compare_to
    if type_ == "table":
        return not _is_ours(name)
    return not _is_ours(getattr(getattr(object_, "table", None), "name", None))


def include_name(name: str | None, type_: str, parent_names: Mapping[str, str | None]) -> bool:
    """Tell Alembic the same by names alone, so that it does not even look at the tables.

    Args:
        name: Of a schema, a table, or what belongs to one; ``None`` for the default schema.
        type_: ``"schema"``, ``"table"``, ``"column"``, ``"index"`` and so on.
        parent_names: The names of the schema and the table that it belongs to.
    """
    if type_ == "schema":
        return name != SCHEMA
    if type_ == "table":
        return not _is_ours(name)
    return not _is_ours(parent_names.get("table_name"))


def _is_ours(table: str | None) -> bool:
    return table is not None and table.startswith(PREFIX)
