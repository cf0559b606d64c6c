"""The layout: folders that can be looked over, and modules that the documents name."""

from __future__ import annotations

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
