"""Contestants in processes of their own: one heap, one event loop and one failure each."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.contestants.registry import Entry
from benchmarks.support.harness import Notes, version_of

__all__ = ["Worker", "WorkerError", "open_workers"]

REPOSITORY = Path(__file__).resolve().parents[2]
ANSWER_SECONDS = 240.0
END_SECONDS = 20.0


class WorkerError(Exception):
    """A contestant failed; the message is its reason."""


class Worker:
    """A process that runs one contestant on one database, order by order.

    Args:
        entry: The contestant.
        url: Its database.
        environment: More variables for the process.
    """

    def __init__(
        self, entry: Entry, url: str, *, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = entry.name
        # Open for as long as the process is.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.support.worker", entry.target, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=REPOSITORY,
            env={**os.environ, **(environment or {})},
        )

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def call(self, what: str, *, within: float = ANSWER_SECONDS, **arguments: object) -> Any:
        """Send an order and return the response.

        Raises:
            WorkerError: The contestant failed, or did not respond in time.
        """
        self.send(what, **arguments)
        return self.receive(within)

    def send(self, what: str, **arguments: object) -> None:
        """Send an order; :meth:`receive` returns the response."""
        assert self._process.stdin is not None
        line = json.dumps({"what": what, "arguments": arguments})
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise WorkerError(self._last_words()) from error

    def receive(self, within: float = ANSWER_SECONDS) -> Any:
        """Return the response to the last order."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(within):
                msg = f"no answer within {within:.0f} s"
                raise WorkerError(msg)
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["answer"]

    def kill(self) -> None:
        """End the process with SIGKILL, as a crash does."""
        self._process.kill()
        self._process.wait(END_SECONDS)

    def __enter__(self) -> Self:
        """Use it as a context manager; it ends with the block."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the process, in good order if it can."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(END_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            self.kill()
        self._process.stdout.close()
        self._errors.close()

    def _last_words(self) -> str:
        self._process.wait(END_SECONDS)
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"ended with code {self._process.returncode}"


@contextmanager
def open_workers(
    entries: Sequence[Entry], urls: Mapping[str, str], notes: Notes, where: str
) -> Iterator[list[Worker]]:
    """Start contestants; those that cannot be started are noted and left out.

    Args:
        entries: The contestants.
        urls: A database for each, by name.
        notes: Collects the contestants left out, and why.
        where: The place for the note, for example ``"postgres"``.
    """
    workers: list[Worker] = []
    try:
        for entry in entries:
            if reason := why_not(entry):
                notes.leave_out(f"{entry.name} ({where})", reason)
                continue
            worker = Worker(entry, urls[entry.name])
            workers.append(worker)
            try:
                worker.call("open")
            except WorkerError as error:
                notes.leave_out(f"{entry.name} ({where})", str(error))
                workers.remove(worker)
                worker.__exit__(None, None, None)
        yield workers
    finally:
        for worker in workers:
            worker.__exit__(None, None, None)


def why_not(entry: Entry) -> str | None:
    """Return why a contestant cannot be started, ``None`` if it can be tried."""
    missing = [name for name in entry.needs if version_of(name) is None and not find_spec(name)]
    return f"{', '.join(missing)} not installed" if missing else None
