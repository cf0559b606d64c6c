"""Texts for log lines: workflows, errors and databases in one line of bounded length."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from itertools import islice

from asgi_durable.errors import DurableError
from asgi_durable.storage.protocol import Lifecycle
from asgi_durable.storage.records import WorkflowRecord
from asgi_durable.storage.transaction_port import ApplicationDatabase

__all__ = ["database_text", "error_text", "library_version", "workflows_text"]

MAX_NAMED_WORKFLOWS = 10
MAX_ERROR_CHARACTERS = 300
# Longer: the library's own errors end with what to do.
MAX_OWN_ERROR_CHARACTERS = 800


def workflows_text(workflows: Iterable[WorkflowRecord]) -> str:
    """Return the number of workflows, and the names and ids of the first ten."""
    listed = list(workflows)
    named = [f"{one.workflow_id} ({one.name})" for one in islice(listed, MAX_NAMED_WORKFLOWS)]
    if len(listed) > MAX_NAMED_WORKFLOWS:
        named.append(f"and {len(listed) - MAX_NAMED_WORKFLOWS} more")
    return f"{len(listed)} {'workflow' if len(listed) == 1 else 'workflows'}: {', '.join(named)}"


def error_text(error: BaseException) -> str:
    """Return an error's class and message."""
    try:
        message = " ".join(str(error).split())
    except Exception:  # __str__ is the application's code
        message = ""
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    is_own = isinstance(error, DurableError)
    limit = MAX_OWN_ERROR_CHARACTERS if is_own else MAX_ERROR_CHARACTERS
    return f"{text[:limit]}…" if len(text) > limit else text


def database_text(storage: Lifecycle, application: ApplicationDatabase | None) -> str:
    """Return the names of the databases, without users and passwords."""
    if application is None:
        return storage.name
    return f"{storage.name} with application database {application.name}"


def library_version() -> str:
    """Return the installed version of the library."""
    try:
        return version("asgi-durable")
    except PackageNotFoundError:
        return "(not installed)"
