"""Spans of a workflow whose process was killed: what follows is linked to where it began."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.paths import CRASH_PROGRAMS, TESTS
from support.processes.asgi_servers import importing_from
from support.telemetry.spans import Tree, trees_of

PROGRAM = CRASH_PROGRAMS / "span_program.py"


def run(folder: Path, what: str, die_in: str = "-") -> int:
    command = [sys.executable, str(PROGRAM), str(folder), what, die_in]
    environment = {**os.environ, **importing_from(TESTS)}
    return subprocess.run(command, timeout=60, check=False, env=environment).returncode


def spans_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "spans").read_text().splitlines()]


def trees(spans: list[dict[str, Any]]) -> list[Tree]:
    return trees_of([(span["name"], span["id"], span["parent"]) for span in spans])


def test_a_workflow_that_was_killed_goes_on_as_a_root_linked_to_its_request(
    tmp_path: Path,
) -> None:
    assert run(tmp_path, "start", die_in="charge") == -9
    before = spans_of(tmp_path)
    assert run(tmp_path, "go on") == 0
    after = spans_of(tmp_path)[len(before) :]

    # The span of the run itself died with its process.
    assert sorted(trees(before)) == [("POST", []), ("durable.step reserve", [])]
    assert len({span["trace"] for span in before}) == 1
    assert trees(after) == [("durable.run order", [("durable.step charge", [])])]
    (resumed,) = [span for span in after if span["name"] == "durable.run order"]
    (request,) = [span for span in before if span["name"] == "POST"]
    (reserve,) = [span for span in before if span["name"] == "durable.step reserve"]
    assert (resumed["run"], resumed["parent"]) == (2, 0)
    # It was in the row that started the workflow; what it has called tells its id.
    assert resumed["links"] == {"origin": request["id"], "previous": reserve["parent"]}
    assert resumed["trace"] != request["trace"]


def test_the_retry_of_a_request_that_was_killed_is_linked_to_the_first_try(tmp_path: Path) -> None:
    assert run(tmp_path, "keyed", die_in="charge") == -9
    (reserve,) = spans_of(tmp_path)
    assert run(tmp_path, "keyed") == 0
    after = spans_of(tmp_path)[1:]

    assert reserve["name"] == "durable.step reserve"
    assert trees(after) == [("POST", [("durable.step charge", [])])]
    (retry,) = [span for span in after if span["name"] == "POST"]
    # The span of the first attempt died with its process; the spans below it name its id.
    first = reserve["parent"]
    assert (retry["run"], retry["links"]) == (2, {"origin": first, "previous": first})
