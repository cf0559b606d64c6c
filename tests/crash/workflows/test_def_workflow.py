"""A process that is killed in the thread of a workflow that is not async."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sys
from pathlib import Path
import sqlalchemy as sa
from asgi_durable import Durable

folder, kill_at = Path(sys.argv[1]), sys.argv[2]
durable = Durable(f"sqlite:///{folder}/test.db")


def point(name):
    with (folder / "ledger").open("a") as ledger:
        ledger.write(name + "\\n")
    if name == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)


@durable.step
def first():
    point("first")


@durable.transaction
def insert():
    session = durable.blocking.session
    session.execute(sa.text("INSERT INTO effects VALUES ('row')"))
    point("transaction")


@durable.step
def last():
    point("last")


@durable.workflow
def work():
    first()
    insert()
    point("inserted")
    last()
    return "done"


@durable.transaction
def create():
    session = durable.blocking.session
    session.execute(sa.text("CREATE TABLE IF NOT EXISTS effects (name TEXT)"))


with durable:
    create()
    print(durable.blocking.options(workflow_id="w").run_workflow(work))
"""


def run(tmp_path: Path, kill_at: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), kill_at],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("kill_at", "expected"),
    [
        ("first", ["first", "first", "transaction", "inserted", "last"]),
        ("transaction", ["first", "transaction", "transaction", "inserted", "last"]),
        ("inserted", ["first", "transaction", "inserted", "inserted", "last"]),
        ("last", ["first", "transaction", "inserted", "last", "inserted", "last"]),
    ],
)
def test_the_next_process_goes_on_after_the_last_record(
    tmp_path: Path, kill_at: str, expected: list[str]
) -> None:
    killed, resumed = run(tmp_path, kill_at), run(tmp_path, "-")

    assert killed.returncode == -signal.SIGKILL
    assert resumed.stdout == "done\n", resumed.stderr
    assert (tmp_path / "ledger").read_text().split() == expected
    connection = sqlite3.connect(tmp_path / "test.db")
    assert connection.execute("SELECT name FROM effects").fetchall() == [("row",)]
    connection.close()
