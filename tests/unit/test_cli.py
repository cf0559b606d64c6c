"""The command ``asgi-durable``."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from asgi_durable.cli import main


def table_names(path: Path) -> set[str]:
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    connection.close()
    return {name for (name,) in rows}


def test_migrate_creates_the_tables_of_a_database(tmp_path: Path, capsys) -> None:
    assert main(["migrate", f"sqlite:///{tmp_path}/log.db"]) == 0

    assert "asgi_durable_workflows" in table_names(tmp_path / "log.db")
    assert capsys.readouterr().out == "The tables are up to date.\n"


def test_migrate_creates_the_table_of_an_application_s_own_database(tmp_path: Path) -> None:
    application = f"sqlite:///{tmp_path}/app.db"
    assert main(["migrate", f"sqlite:///{tmp_path}/log.db", "--application-url", application]) == 0

    assert table_names(tmp_path / "app.db") == {"asgi_durable_transactions"}


def test_the_database_is_taken_from_the_environment(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ASGI_DURABLE_URL", f"sqlite:///{tmp_path}/log.db")

    assert main(["migrate"]) == 0

    assert "asgi_durable_workflows" in table_names(tmp_path / "log.db")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:////nowhere/log.db", "/nowhere/log.db: the folder /nowhere does not exist"),
        ("mongodb://host/db", "no storage adapter for 'mongodb'"),
    ],
)
def test_what_cannot_be_migrated_is_named_and_nothing_else(url: str, message: str, capsys) -> None:
    assert main(["migrate", url]) == 1

    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("asgi-durable")
    shown = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    assert "migrate" in shown.stdout
