"""The layout: folders that can be looked over, and modules that the documents name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import REPOSITORY

MAX_MODULES = 14
ROOTS = ("asgi_durable", "adapters", "tests", "benchmarks", "examples")


def folders() -> Iterator[Path]:
    for root in ROOTS:
        yield from sorted({path.parent for path in (REPOSITORY / root).rglob("*.py")})


@pytest.mark.parametrize(
    "folder", list(folders()), ids=lambda path: str(path.relative_to(REPOSITORY))
)
def test_a_folder_can_be_looked_over(folder: Path) -> None:
    assert len(list(folder.glob("*.py"))) <= MAX_MODULES


def named_places() -> list[str]:
    """Return the files and folders of the package that the page on the architecture names."""
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    words = re.findall(r"[\w./*]+(?:\.py|/)(?![\w/])", page)
    return sorted({word for word in words if "/" in word or word.endswith(".py")})


@pytest.mark.parametrize("place", named_places())
def test_the_page_on_the_architecture_names_what_is_there(place: str) -> None:
    roots = [REPOSITORY, REPOSITORY / "asgi_durable", REPOSITORY / "asgi_durable" / "middleware"]

    assert any(list(root.glob(place)) for root in roots)
