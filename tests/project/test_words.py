"""The words of docstrings, comments and documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from project.words import findings
from support.paths import REPOSITORY

# Folders, without those below them, and single files.
READ = (
    "adapters/*",
    "asgi_durable",
    "asgi_durable/concurrency",
    "asgi_durable/engine",
    "asgi_durable/engine/process",
    "asgi_durable/engine/recovery",
    "asgi_durable/engine/replay",
    "asgi_durable/engine/runs",
    "asgi_durable/engine/steps",
    "asgi_durable/middleware",
    "asgi_durable/middleware/fingerprints",
    "asgi_durable/middleware/installing",
    "asgi_durable/middleware/keys",
    "asgi_durable/middleware/policies",
    "asgi_durable/middleware/request_bodies",
    "asgi_durable/verbs",
    "examples",
)
PAGES = ("CONTRIBUTING.md", "docs/architecture.md")


def texts() -> Iterator[Path]:
    """Return the files whose words are held to the list; the others follow."""
    for folder in READ:
        yield from sorted(REPOSITORY.glob(f"{folder}/*.py"))
    for page in PAGES:
        yield REPOSITORY / page


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
