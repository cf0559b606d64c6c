"""Group the writes of a batch, so that an adapter can apply a group kind by kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from asgi_durable.storage.writes import (
    CancelWorkflow,
    ClaimRequest,
    ClearCrashCount,
    CompleteStep,
    FinishWorkflow,
    ForgetRequest,
    RecordChunk,
    RecordStep,
    ReleaseWorkflow,
    ResumeWorkflow,
    SetFingerprint,
    SetLastSpan,
    StartWorkflow,
    Write,
    workflow_id_of,
)

__all__ = ["is_one_group", "write_order"]

HEAD, STEP, TAIL = range(3)
_STAGES: dict[type[Any], int] = {
    StartWorkflow: HEAD,
    ClaimRequest: HEAD,
    ResumeWorkflow: HEAD,
    SetFingerprint: HEAD,
    SetLastSpan: HEAD,
    RecordStep: STEP,
    CompleteStep: STEP,
    RecordChunk: STEP,
    FinishWorkflow: TAIL,
    ClearCrashCount: TAIL,
    ReleaseWorkflow: TAIL,
    ForgetRequest: TAIL,
    CancelWorkflow: TAIL,
}


def write_order(writes: Sequence[Write]) -> Iterator[list[int]]:
    """Sort writes into groups; the writes of one group can be applied together, kind by kind.

    In a group, a workflow has at most one write that begins or takes it (HEAD), then steps and
    chunks with different numbers (STEP), then at most one write that ends or releases it (TAIL).
    A run submits its writes in this order, so there is nearly always one group; only a repeated
    write needs a second one.

    Yields:
        The indexes of a group's writes.
    """
    groups: list[list[int]] = []
    reached: dict[str, tuple[int, int]] = {}
    places: set[tuple[int, str, int, bool]] = set()
    for index, write in enumerate(writes):
        workflow_id, stage = workflow_id_of(write), _STAGES[type(write)]
        number, last_stage = reached.get(workflow_id, (0, -1))
        if stage < last_stage or stage == last_stage != STEP:
            number += 1
        if isinstance(write, (RecordStep, CompleteStep, RecordChunk)):
            place = (number, *_place(write))
            number += place in places
            places.add((number, *place[1:]))
        reached[workflow_id] = (number, stage)
        if number == len(groups):
            groups.append([])
        groups[number].append(index)
    yield from groups


def is_one_group(writes: Iterable[Write]) -> bool:
    """Return True if all writes are one group of :func:`write_order`, as they nearly always are."""
    reached: dict[str, int] = {}
    places: set[tuple[str, int, bool]] = set()
    for write in writes:
        workflow_id, stage = workflow_id_of(write), _STAGES[type(write)]
        last_stage = reached.get(workflow_id, -1)
        if stage < last_stage or stage == last_stage != STEP:
            return False
        reached[workflow_id] = stage
        if isinstance(write, (RecordStep, CompleteStep, RecordChunk)):
            place = _place(write)
            if place in places:
                return False
            places.add(place)
    return True


def _place(write: RecordStep | CompleteStep | RecordChunk) -> tuple[str, int, bool]:
    if isinstance(write, RecordChunk):
        return write.chunk.workflow_id, write.chunk.end_offset, True
    return write.step.workflow_id, write.step.step_number, False
