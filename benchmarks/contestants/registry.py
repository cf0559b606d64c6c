"""The contestants, their databases, and the packages that they need."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DBOS", "ENGINES", "LIMIT", "OURS", "Entry", "engines_of"]

PACKAGE = "benchmarks.contestants"
OURS, DBOS, LIMIT = "asgi-durable", "dbos", "raw_group"


@dataclass(frozen=True)
class Entry:
    """A contestant.

    Attributes:
        name: In the tables.
        target: Its class.
        databases: Where it can run.
        needs: The packages of a peer.
    """

    name: str
    target: str
    databases: tuple[str, ...] = ("sqlite", "postgres")
    needs: tuple[str, ...] = ()


ENGINES = (
    Entry(OURS, f"{PACKAGE}.durable:DurableContestant"),
    Entry(DBOS, f"{PACKAGE}.dbos:DBOSContestant", needs=("dbos",)),
    Entry("dbos_wal", f"{PACKAGE}.dbos:DBOSInWAL", ("sqlite",), ("dbos",)),
    Entry("edda", f"{PACKAGE}.edda:EddaContestant", needs=("edda-framework",)),
    Entry(
        "absurd",
        f"{PACKAGE}.absurd:AbsurdContestant",
        ("postgres",),
        ("absurd-sdk", "absurdctl"),
    ),
    Entry("raw_each", f"{PACKAGE}.raw_sqlite:RawEach", ("sqlite",)),
    Entry(LIMIT, f"{PACKAGE}.raw_sqlite:RawGroup", ("sqlite",)),
    Entry("raw_each", f"{PACKAGE}.raw_postgres:RawEach", ("postgres",)),
    Entry(LIMIT, f"{PACKAGE}.raw_postgres:RawGroup", ("postgres",)),
)


def engines_of(database: str, names: list[str] | None = None) -> list[Entry]:
    """Return the contestants that can run on a database."""
    return [
        entry
        for entry in ENGINES
        if database in entry.databases and (not names or entry.name in names)
    ]
