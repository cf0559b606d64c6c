"""A process is killed, and the next one continues its workflows with other code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.databases.postgres import temporary_schema, with_schema
from support.paths import TESTS
from support.processes.asgi_servers import importing_from

PROGRAM = TESTS / "values" / "evolving_program.py"
ITEM = (
    "Goods(name='tea', colour=<Paint.CRIMSON: 'red'>, size=Extent(height=3, width=1, unit='m'), "
    "count=2, tags=[])"
)
PARCEL = f"Crate(items=[{ITEM}], weight=4.0, notes=[])"
SEEN = {
    "step result": f"[{ITEM}, {PARCEL}, Marked(number=7, mark='new')]",
    "step argument": "3",
    "input": f"[{ITEM}, {PARCEL}]",
    "child result": ITEM,
    "error": "[<class 'values.evolving.version_2.SoldOutError'>, 'there are 2 of tea', 'tea', 2]",
    "transaction": ITEM,
    "application's transaction": ITEM,
    "finished result": ITEM,
    "ran": "[]",
}


def run(version: int, url: str, folder: Path) -> int:
    """Run a version of the program to its end."""
    command = [sys.executable, str(PROGRAM), str(version), url, str(folder)]
    environment = os.environ | importing_from(TESTS)
    return subprocess.run(command, timeout=120, check=False, env=environment).returncode


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def seen(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """The values that the second version has seen, by place, after the first one was killed."""
    folder = tmp_path_factory.mktemp("evolving")
    with ExitStack() as stack:
        url = f"sqlite:///{folder}/log.db"
        if request.param == "postgres":
            server = request.getfixturevalue("postgres")
            url = with_schema(server.url, stack.enter_context(temporary_schema(server.url)))
        assert run(1, url, folder) == -signal.SIGKILL
        assert run(2, url, folder) == 0
        yield json.loads((folder / "seen").read_text())


@pytest.mark.parametrize("place", SEEN)
def test_each_place_is_read_by_the_code_of_the_next_process(
    seen: dict[str, str], place: str
) -> None:
    assert seen[place] == SEEN[place]
