"""A workflow killed at every one of its places: each effect happens as often as promised."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from support.paths import CRASH_PROGRAMS

PROGRAM = CRASH_PROGRAMS / "kill_point_program.py"
POINTS = [
    "work begins",
    "first begins",
    "first ends",
    "first returned",
    "transaction begins",
    "transaction ends",
    "transaction returned",
    "child begins",
    "child's step begins",
    "child returned",
    "last begins",
    "last returned",
    "result shown",
]


def run(folder: Path, kill_at: str) -> int:
    command = [sys.executable, str(PROGRAM), str(folder), kill_at]
    return subprocess.run(command, timeout=60, check=False).returncode


def ledger(folder: Path) -> Counter[str]:
    return Counter((folder / "ledger").read_text().splitlines())


def effects(folder: Path) -> int:
    connection = sqlite3.connect(folder / "test.db")
    count: int = connection.execute("SELECT count(*) FROM effects").fetchone()[0]
    connection.close()
    return count


@pytest.mark.parametrize("kill_at", POINTS)
def test_a_kill_at_any_place_loses_nothing_and_doubles_nothing(
    tmp_path: Path, kill_at: str
) -> None:
    assert run(tmp_path, kill_at) == -9
    before = ledger(tmp_path)
    assert run(tmp_path, "-") == 0

    assert (tmp_path / "result").read_text() == "['one', 2, 'child', 'three']"
    assert effects(tmp_path) == 1
    again = ledger(tmp_path) - before
    # Once the body of a later step has begun, the record of an earlier one is durable.
    for step, later in (
        ("first begins", "transaction begins"),
        ("transaction begins", "transaction returned"),
        ("child's step begins", "last begins"),
    ):
        if before[later]:
            assert again[step] == 0
    if before["result shown"]:
        assert set(again) == {"result shown"}


def test_a_kill_in_the_resumed_run_loses_nothing_either(tmp_path: Path) -> None:
    for kill_at in ("first ends", "transaction ends", "last begins"):
        assert run(tmp_path, kill_at) == -9

    assert run(tmp_path, "-") == 0
    assert effects(tmp_path) == 1
    assert ledger(tmp_path)["transaction ends"] == 2
