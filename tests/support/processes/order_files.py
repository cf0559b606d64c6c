"""The files of the order service, read without the library."""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path


def query(folder: Path, sql: str, *parameters: object) -> list[tuple[object, ...]]:
    """Read from the service's database."""
    connection = sqlite3.connect(folder / "orders.db", timeout=30.0)
    try:
        return connection.execute(sql, parameters).fetchall()
    finally:
        connection.close()


def outbox(folder: Path) -> Counter[str]:
    """Return how often each line was written."""
    path = folder / "outbox.txt"
    return Counter(path.read_text().splitlines()) if path.exists() else Counter()


def recorded_steps(folder: Path, name: str) -> set[str]:
    """Return the ids of the workflows that have recorded a step of this name."""
    rows = query(folder, "SELECT workflow_id FROM asgi_durable_steps WHERE name = ?", name)
    return {str(workflow_id) for (workflow_id,) in rows}
