"""The result of a step that an earlier execution recorded."""

from __future__ import annotations

import logging
from typing import Any

from asgi_durable.engine.process.definitions import Definition
from asgi_durable.engine.process.recorded_errors import encode_error
from asgi_durable.engine.runs.run import Run
from asgi_durable.errors import StepInterruptedError
from asgi_durable.storage.records import NO_OUTPUT, StepRecord

__all__ = ["recorded_result", "warn_of_lost_effects"]

logger = logging.getLogger(__name__)


async def recorded_result(run: Run, definition: Definition, step: StepRecord) -> Any:
    """Return the result in a step's record, or raise the error in it.

    Raises:
        StepInterruptedError: An earlier execution began the step and left no outcome.
        RunStopped: The run must not continue.
    """
    if not step.is_finished:
        step = await _record_interruption(run, step)
    await run.log.finish_in_turn(step.step_number, step.finished_at_us)
    return run.log.outcome(definition, step.output, step.error)


def warn_of_lost_effects(run: Run, definition: Definition) -> None:
    """Log that a replayed step does not change the response again, if it is one that does."""
    if definition.response_parameters:
        logger.warning(
            "%r of %s is not run again, and so what it did to %s is missing in the response: let "
            "a workflow, or the handler itself, do that",
            definition.name,
            run.workflow_id,
            ", ".join(sorted(definition.response_parameters)),
        )


async def _record_interruption(run: Run, step: StepRecord) -> StepRecord:
    """Record that a step was interrupted, whatever becomes known of it later.

    Invariant: recorded and durable before the code sees it. A late outcome of the earlier
    execution is refused from then on, so each replay sees the same. If that outcome came first,
    this run ends here, and the next one replays it.
    """
    error = encode_error(run.services.registry.values, StepInterruptedError(step.name))
    outcome = run.log.new_record(
        step.step_number, step.name, step.digest, output=NO_OUTPUT, error=error
    )
    run.submit_step(outcome, has_begun=True)
    await run.writes.wait_durable()
    return outcome
