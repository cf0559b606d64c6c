"""The words of docstrings, comments and documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from project.words import findings
from support.paths import REPOSITORY

FOLDERS = ("adapters", "asgi_durable", "benchmarks", "docs", "examples", "tests")
# Recorded by an earlier version: nothing in it may change.
UNTOUCHED = REPOSITORY / "tests/values/former"
# The list of banned words itself, and its examples.
LIST = {REPOSITORY / "tests/project/words.py", REPOSITORY / "tests/project/test_words.py"}


def texts() -> Iterator[Path]:
    """Return all modules and documents."""
    yield from sorted(REPOSITORY.glob("*.md"))
    yield REPOSITORY / "noxfile.py"
    for folder in FOLDERS:
        for path in sorted((REPOSITORY / folder).rglob("*")):
            is_text = path.suffix in {".md", ".py"} and path.is_file()
            if is_text and UNTOUCHED not in path.parents and path not in LIST:
                yield path


@pytest.mark.parametrize("path", list(texts()), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_word_needs_to_be_read_twice(path: Path) -> None:
    assert list(findings(path)) == []


@pytest.mark.parametrize(
    "text",
    [
        '"""What is read."""',
        '"""Reads a row. Who waits for it is told."""',
        "# The twin of a request.",
        "# It is kept for a day.",
        "# In a database, say SQLite.",
    ],
)
def test_a_banned_word_is_found(tmp_path: Path, text: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(f"{text}\n")

    assert list(findings(path)) != []


def test_code_in_a_text_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("Set `storage_patience` and read [the page](answer.md).\n\n```\ntwin\n```\n")

    assert list(findings(path)) == []
