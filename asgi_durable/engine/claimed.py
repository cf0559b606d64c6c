"""What is told where a request is claimed."""

from __future__ import annotations

from asgi_durable.engine.run import Run
from asgi_durable.storage.records import WorkflowRecord
from asgi_durable.value_class import value_class

__all__ = ["Claimed"]


@value_class()
class Claimed:
    """The request is this caller's to answer; its handler runs in a task of the engine's."""

    run: Run

    @property
    def outcome(self) -> str:
        return "executed" if self.workflow.attempts == 1 else "resumed"

    @property
    def workflow(self) -> WorkflowRecord:
        return self.run.workflow
