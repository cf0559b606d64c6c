"""Shared by the benchmarks: options, medians and ratios, tables, and the machine's name."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sqlite3
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

__all__ = [
    "Notes",
    "cpu_seconds",
    "cpu_seconds_of",
    "in_turn",
    "median_of",
    "median_ratio",
    "number",
    "options",
    "print_table",
    "version_of",
    "write_json",
]

CellT = TypeVar("CellT")


class Notes:
    """The contestants left out, and why; printed and written beside the results."""

    def __init__(self) -> None:
        self.left_out: dict[str, str] = {}

    def leave_out(self, who: str, why: str) -> None:
        """Take note; the first reason counts."""
        if who not in self.left_out:
            self.left_out[who] = why
            print(f"left out: {who}: {why}", file=sys.stderr, flush=True)

    def print(self) -> None:
        """Say it below the tables."""
        for who, why in self.left_out.items():
            print(f"- left out: **{who}**: {why}")


def options(doc: str | None, **defaults: object) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has.

    Args:
        doc: The script's docstring.
        defaults: Of options of the script's own.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--rounds", type=int, default=None, help="medians are taken over these")
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="write the figures there")
    parser.set_defaults(**defaults)
    return parser


def cpu_seconds() -> float:
    """Return the processor time of this process so far, of all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def cpu_seconds_of(pid: int) -> float:
    """Return the processor time of another process so far, to a hundredth of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def in_turn(contestants: Sequence[CellT], rounds: int) -> Iterator[tuple[int, CellT]]:
    """Yield the contestants round by round, each time beginning with another one."""
    for turn in range(rounds):
        start = turn % len(contestants) if contestants else 0
        for contestant in (*contestants[start:], *contestants[:start]):
            yield turn, contestant


def median_of(samples: Iterable[Mapping[str, float]], name: str) -> float | None:
    """Return the median of some values, ``None`` where nothing was measured."""
    values = [sample[name] for sample in samples if name in sample]
    return statistics.median(values) if values else None


def median_ratio(
    ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]], name: str
) -> float | None:
    """Return the median of the ratios round by round: what slows a round slows both."""
    ratios = [
        mine[name] / other[name]
        for mine, other in zip(ours, theirs, strict=False)
        if name in mine and name in other and other[name]
    ]
    return statistics.median(ratios) if ratios else None


def number(value: float | None) -> str:
    """Return a number with the digits that count."""
    if value is None:
        return "-"
    if 0 < abs(value) < 0.095:
        return f"{value:.2g}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[tuple[str, Sequence[float | str | None]]],
) -> None:
    """Print a table in Markdown; numbers are shortened."""
    print(f"\n| {title} | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for name, cells in rows:
        texts = [cell if isinstance(cell, str) else number(cell) for cell in cells]
        print(f"| {name} | {' | '.join(texts)} |", flush=True)


def write_json(folder: Path | None, script: str, results: object, notes: Notes) -> None:
    """Write results with the machine they are of, if there is a folder to write to."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine(), "left_out": notes.left_out, "results": results}
    path = folder / f"{script}.json"
    path.write_text(json.dumps(content, indent=1))
    print(f"\nwritten: {path}")


def version_of(distribution: str) -> str | None:
    """Return the version of an installed package, ``None`` if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def machine() -> dict[str, object]:
    """Return the conditions that results depend on besides the code."""
    return {
        "cores": os.cpu_count(),
        "processor": _cpu_model(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "load_average": os.getloadavg(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "packages": {name: version_of(name) for name in PACKAGES if version_of(name)},
        "commit": _first_line(["git", "rev-parse", "--short", "HEAD"]),
    }


PACKAGES = (
    "asgi-durable",
    "absurd-sdk",
    "asgi-correlation-id",
    "asgi-idempotency-header",
    "asyncpg",
    "dbos",
    "edda-framework",
    "fastapi",
    "idemkit",
    "opentelemetry-instrumentation-asgi",
    "psycopg",
    "sqlalchemy",
    "uvicorn",
    "uvloop",
)


def _cpu_model() -> str:
    lines = _or_nothing(lambda: Path("/proc/cpuinfo").read_text().splitlines()) or []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _first_line(command: Sequence[str]) -> str | None:
    def run() -> str:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        ).stdout.strip()

    return _or_nothing(run)


def _or_nothing(read: Callable[[], CellT]) -> CellT | None:
    try:
        return read()
    except (OSError, subprocess.CalledProcessError):
        return None
