"""What the records of steps are for code that runs again."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from asgi_durable.engine.values import decode_recorded, decoded_failure, encode_error
from asgi_durable.errors import StepInterruptedError
from asgi_durable.storage.records import NO_OUTPUT, StepRecord

if TYPE_CHECKING:
    from asgi_durable.engine.registry import Definition
    from asgi_durable.engine.run import Run

__all__ = ["replayed", "tell_of_replay"]

logger = logging.getLogger(__name__)


async def replayed(run: Run, step: StepRecord) -> Any:
    """Return what a step's record holds, or raise the error that it holds.

    Raises:
        StepInterruptedError: An earlier execution has begun the step and left no outcome.
        RunStopped: The run must not go on.
    """
    run.note_settled()
    if not step.is_finished:
        await _interrupted(run, step)
    return decode_recorded(run, step.output, step.error)


def tell_of_replay(run: Run, definition: Definition) -> None:
    """Write a line to the log where the result is not all that a caller of the step would get."""
    if definition.answering:
        logger.warning(
            "%r of %s is not run again, and so what it did to %s is missing in the answer: let a "
            "workflow, or the handler itself, do that",
            definition.name,
            run.workflow_id,
            ", ".join(sorted(definition.answering)),
        )


async def _interrupted(run: Run, step: StepRecord) -> None:
    """Raise what has become of a step, whatever will be known of it later.

    Invariant: recorded and durable before the code learns of it. An outcome of the earlier
    execution's that arrives late is refused from then on, so each replay sees the same; and
    if it was first, this run ends here, and the next one replays it.
    """
    failure = StepInterruptedError(step.name)
    encoded = encode_error(run.services.registry.codec, failure)
    outcome = run.step_record(
        step.step_number, step.name, step.digest, output=NO_OUTPUT, error=encoded
    )
    run.submit_step(outcome, has_begun=True)
    await run.settle()
    raise decoded_failure(run, encoded, failure)
