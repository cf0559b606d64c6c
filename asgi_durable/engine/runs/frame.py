"""The place of the current code: in which workflow it runs, and inside which step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import field, replace
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from asgi_durable.engine.runs.run import Run
from asgi_durable.engine.runs.services import Services
from asgi_durable.errors import DurableUsageError
from asgi_durable.fast_dataclass import fast_dataclass

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

__all__ = [
    "Frame",
    "begin_attempt",
    "call_in_thread",
    "current_frame",
    "current_session",
    "enter_event_loop",
    "entered",
]

ResultT = TypeVar("ResultT")


@fast_dataclass()
class Frame:
    """A place in a run.

    Attributes:
        services: The engine, as several ``Durable`` may live in one process.
        run: The workflow's run; ``None`` in a transaction outside any workflow.
        step_name: The step or transaction whose body runs; ``None`` between steps.
        step_number: The number of that step in the log.
        session: The transaction's session.
        in_thread: True for code that is not async, and cannot await the engine's calls.
        outgoing: Numbers the outgoing requests of this attempt, from 0.
    """

    services: Services
    run: Run | None
    step_name: str | None = None
    step_number: int | None = None
    session: AsyncSession | Session | None = None
    in_thread: bool = False
    outgoing: Iterator[int] = field(default_factory=count, compare=False)


current_frame: ContextVar[Frame | None] = ContextVar("asgi_durable_current_frame", default=None)


@contextmanager
def entered(frame: Frame) -> Iterator[None]:
    """Make a frame the current one for the code inside."""
    token = current_frame.set(frame)
    try:
        yield
    finally:
        current_frame.reset(token)


def call_in_thread(function: Callable[[], ResultT]) -> ResultT:
    """Call a sync function, which cannot await the engine's calls; see ``Frame.in_thread``."""
    frame = current_frame.get()
    if frame is not None:
        current_frame.set(replace(frame, in_thread=True))
    return function()


def enter_event_loop() -> None:
    """Let the code from here on await the engine's calls, although a sync function began it."""
    frame = current_frame.get()
    if frame is not None:
        current_frame.set(replace(frame, in_thread=False))


def begin_attempt() -> None:
    """Number outgoing requests from 0 again, as the current step is attempted again.

    It replaces the frame instead of changing it: tasks that the last attempt left behind may
    still use the old one.
    """
    frame = current_frame.get()
    if frame is not None:
        current_frame.set(replace(frame, outgoing=count()))


def current_session(frame: Frame | None) -> AsyncSession | Session:
    """Return the session of the transaction that a frame belongs to.

    Raises:
        DurableUsageError: It belongs to none.
    """
    if frame is not None and frame.session is not None:
        return frame.session
    place = "outside of any workflow, step and transaction"
    if frame is not None and frame.step_name is not None:
        place = f"in step {frame.step_name!r}"
    elif frame is not None and frame.run is not None:
        place = f"between the steps of {frame.run.workflow.name!r}"
    msg = (
        "durable.session is there while a function with @durable.transaction runs, and this code "
        f"runs {place}"
    )
    raise DurableUsageError(msg)
