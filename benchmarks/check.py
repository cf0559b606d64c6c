"""Compares this checkout with another revision of it, in alternating pairs.

Each round runs the same work on both, in processes of their own, one after the other; the order
changes from round to round. Instructions are counted where the machine can do that, with ``perf``
or, with ``--method cachegrind``, with valgrind, which takes minutes; processor time is measured
otherwise. A ratio below 1 means that this checkout needs less.

    python -m benchmarks.check --against main~5 [--rounds N] [--method METHOD] [--cases step,first]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.support.compared_work import CASES, Case
from benchmarks.support.harness import in_turn, print_table

ROOT = Path(__file__).resolve().parent.parent
ADAPTERS = "adapters"
HERE, THERE = "here", "there"
# The work itself, without the start of the process: two runs that differ by its count.
NOTHING = 0
Measure = Callable[[Path, Case, str, int], float]


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """Yield a folder with a revision of this repository, and remove it afterwards.

    Raises:
        SystemExit: There is no such revision, or this is no checkout.
    """
    folder = Path(tempfile.mkdtemp(prefix="asgi-durable-check-"))
    added = _git("worktree", "add", "--detach", str(folder), revision)
    if added.returncode:
        shutil.rmtree(folder)
        msg = f"--against {revision}: {added.stderr.strip()}"
        raise SystemExit(msg)
    try:
        yield folder
    finally:
        _git("worktree", "remove", "--force", str(folder))


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _run(folder: Path, name: str, count: int, *before: str) -> subprocess.CompletedProcess[str]:
    """Run some work on the library in a folder; the work itself is this checkout's."""
    paths = os.pathsep.join([str(folder), str(folder / ADAPTERS)])
    # The first on the path, before an installed library; hashes are the same in every process.
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONHASHSEED": "0"}
    script = ROOT / "benchmarks/support/compared_work.py"
    command = [*before, sys.executable, str(script), name, str(count)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"{name} failed on {folder}:\n{done.stderr}"
        raise SystemExit(msg)
    return done


def processor_time(folder: Path, _case: Case, name: str, count: int) -> float:
    """Return seconds of processor time, of all threads."""
    return float(_run(folder, name, count).stdout)


def perf_instructions(folder: Path, _case: Case, name: str, count: int) -> float:
    """Return instructions, as the processor counts them."""
    return _difference(lambda number: _perf(folder, name, number), count)


def cachegrind_instructions(folder: Path, _case: Case, name: str, count: int) -> float:
    """Return instructions, as valgrind counts them."""
    return _difference(lambda number: _cachegrind(folder, name, number), count)


def _difference(counted: Callable[[int], float], count: int) -> float:
    return counted(count) - counted(NOTHING)


def _perf(folder: Path, name: str, count: int) -> float:
    done = _run(folder, name, count, "perf", "stat", "-x,", "-e", "instructions:u")
    return _perf_count(done.stderr) or 0.0


def _perf_count(output: str) -> float | None:
    for line in output.splitlines():
        value, *rest = line.split(",")
        if "instructions" in ",".join(rest) and value.isdigit():
            return float(value)
    return None


def _cachegrind(folder: Path, name: str, count: int) -> float:
    options = ("--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")
    done = _run(folder, name, count, "valgrind", *options)
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if found is None:
        msg = f"valgrind counted nothing:\n{done.stderr}"
        raise SystemExit(msg)
    return float(found[1].replace(",", ""))


METHODS: dict[str, Measure] = {
    "perf": perf_instructions,
    "cachegrind": cachegrind_instructions,
    "time": processor_time,
}


def best_method() -> str:
    """Return ``perf`` if this machine's processor counts instructions, ``time`` otherwise."""
    if shutil.which("perf") is None:
        return "time"
    command = ["perf", "stat", "-x,", "-e", "instructions:u", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "perf" if _perf_count(done.stderr) is not None else "time"


def compare(revision: str, names: list[str], method: str, rounds: int) -> None:
    """Print the ratios of this checkout to a revision, with their spread."""
    measure = METHODS[method]
    with checked_out(revision) as other:
        places = [(HERE, ROOT), (THERE, other)]
        rows = []
        for name in names:
            case = CASES[name]
            values: dict[str, list[float]] = {HERE: [], THERE: []}
            for _, (place, folder) in in_turn(places, rounds):
                values[place].append(measure(folder, case, name, case.count))
            ratios = [
                ours / theirs for ours, theirs in zip(values[HERE], values[THERE], strict=True)
            ]
            cells = [statistics.median(ratios), f"{min(ratios):.2f} to {max(ratios):.2f}"]
            rows.append((case.name, cells))
            print(f"{case.name}: {cells[0]:.2f}", file=sys.stderr, flush=True)
        print_table(f"this checkout ÷ {revision}, {method}", ["median", "spread"], rows)


def main() -> None:
    """Read the options, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--against", required=True, metavar="REVISION", help="of this repository")
    parser.add_argument("--rounds", type=int, help="9 by default, 1 with cachegrind")
    parser.add_argument("--method", choices=METHODS, help="perf if it counts, time otherwise")
    parser.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES)}")
    chosen = parser.parse_args()
    names = [name for name in chosen.cases.split(",") if name]
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"--cases: no case is called {unknown[0]!r}; there are {', '.join(CASES)}")
    method = chosen.method or best_method()
    rounds = chosen.rounds or (1 if method == "cachegrind" else 9)
    compare(chosen.against, names, method, rounds)


if __name__ == "__main__":
    main()
