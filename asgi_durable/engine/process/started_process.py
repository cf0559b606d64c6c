"""The process that has started an engine; a forked child cannot use that engine."""

from __future__ import annotations

from os import getpid

from asgi_durable.errors import DurableUsageError

__all__ = ["StartedProcess", "not_started"]


class StartedProcess:
    """Remembers in which process the engine was started.

    A forked child has the parent's memory, but none of its threads: a call of the engine would
    wait there for ever. The connections and file locks belong to the parent as well.
    """

    def __init__(self) -> None:
        self._process_id: int | None = None

    def enter(self) -> None:
        """Record that the engine is started, in the current process."""
        self._process_id = getpid()

    def leave(self) -> None:
        """Record that the engine is stopped."""
        self._process_id = None

    def is_own(self) -> bool:
        """Return False if another process has started the engine."""
        return self._process_id is None or self._process_id == getpid()

    def require_own(self) -> None:
        """Refuse to be used in a child of the process that has started the engine.

        Raises:
            DurableUsageError: The current process is such a child.
        """
        # Called for each request and each call, so nothing else happens here.
        if self._process_id != getpid() and self._process_id is not None:
            msg = (
                f"the engine was started in process {self._process_id}, and this is a child that "
                "was forked from it, in which it cannot work: start it in each child, and not "
                "before the fork (with a server that loads the app first, such as 'gunicorn "
                "--preload', start nothing at import; with multiprocessing, use 'spawn')"
            )
            raise DurableUsageError(msg)


def not_started() -> DurableUsageError:
    """Return the error of an engine that is not started in any process."""
    return DurableUsageError(
        "the engine is not started: serve the app through durable.wrap() or install(), "
        "or use 'async with durable:', or 'with durable:' where nothing is async"
    )
