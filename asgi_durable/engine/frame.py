"""Where the current code runs: in which workflow, and inside which step."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from asgi_durable.value_class import value_class

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from asgi_durable.engine.run import Run, Services

__all__ = ["Frame", "current_frame"]


@value_class()
class Frame:
    """A place in a run.

    Attributes:
        services: Whose run, where several ``Durable`` live in one process.
        run: The workflow's run; ``None`` in a transaction outside any workflow.
        step_name: The step or transaction whose body runs; ``None`` between steps.
        step_number: Its place in the log.
        session: The transaction's session.
        in_thread: True for code that is not async: it cannot await what the engine does.
    """

    services: Services
    run: Run | None
    step_name: str | None = None
    step_number: int | None = None
    session: AsyncSession | Session | None = None
    in_thread: bool = False


current_frame: ContextVar[Frame | None] = ContextVar("asgi_durable_current_frame", default=None)
