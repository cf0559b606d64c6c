"""The result of a workflow that another one has asked for by its id.

What is recorded is the result as the workflow has left it, with the workflow's name: a replay
reads it by the annotations that the workflow has then.
"""

from __future__ import annotations

import inspect
from typing import Any

from asgi_durable.codec.values import Values
from asgi_durable.engine.function_values import FunctionValues
from asgi_durable.value_class import value_class

__all__ = ["ResultValues", "WorkflowResult"]


@value_class()
class WorkflowResult:
    """A workflow's result.

    Attributes:
        name: The workflow's; ``None`` where a former version has recorded the value itself.
        output: As it is recorded.
        value: It itself, in that case.
    """

    name: str | None
    output: bytes = b"null"
    value: Any = None


class ResultValues(FunctionValues):
    """Reads and writes what the step that asks for a result returns."""

    def __init__(self, values: Values, function: str) -> None:
        super().__init__(values, function, inspect.Signature(), {})
        self._outcomes = values

    def write_result(self, value: Any) -> tuple[bytes, Any]:
        return self._outcomes.write_outcome(value.name, value.output), value

    def read_result(self, data: bytes | None) -> WorkflowResult:
        found = self._outcomes.read_outcome(data or b"null")
        if found is None:
            return WorkflowResult(None, value=super().read_result(data))
        return WorkflowResult(*found)
