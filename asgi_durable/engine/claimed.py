"""What is told where a request is claimed."""

from __future__ import annotations

from dataclasses import dataclass

from asgi_durable.engine.run import Run
from asgi_durable.storage.records import WorkflowRecord

__all__ = ["Claimed"]


@dataclass(frozen=True, slots=True)
class Claimed:
    """The request is this caller's to answer; its handler runs in a task of the engine's."""

    run: Run

    @property
    def outcome(self) -> str:
        return "executed" if self.workflow.attempts == 1 else "resumed"

    @property
    def workflow(self) -> WorkflowRecord:
        return self.run.workflow
