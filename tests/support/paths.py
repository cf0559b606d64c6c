"""Where the repository's folders are."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CRASH_PROGRAMS", "EXAMPLES", "REPOSITORY", "TESTS"]

TESTS = Path(__file__).parents[1]
REPOSITORY = TESTS.parent
EXAMPLES = REPOSITORY / "examples"
CRASH_PROGRAMS = TESTS / "crash" / "programs"
