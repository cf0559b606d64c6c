"""The comparison of two checkouts: its work runs on the library, and its options are checked."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.paths import REPOSITORY

WORK = REPOSITORY / "benchmarks/support/compared_work.py"
CASES = ("step", "workflow", "first", "replay", "unkeyed")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("case", CASES)
def test_each_case_runs_and_prints_its_time(case: str) -> None:
    done = run(str(WORK), case, "20")

    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--against", "HEAD", "--cases", "walk"], "no case is called 'walk'"),
        (["--against", "no-such-revision", "--rounds", "1"], "--against no-such-revision"),
        (["--against", "HEAD", "--method", "guess"], "invalid choice: 'guess'"),
        ([], "--against"),
    ],
)
def test_a_mistake_in_an_option_is_named(options: list[str], error: str) -> None:
    done = run("-m", "benchmarks.check", *options)

    assert done.returncode != 0
    assert error in done.stderr
