"""Decide whether a call with a workflow id may attach to the workflow that has the id."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from asgi_durable.codec.json_codec import Codec
from asgi_durable.codec.types import is_pydantic_model
from asgi_durable.engine.process.definitions import WorkflowDefinition
from asgi_durable.engine.runs.call import Call
from asgi_durable.errors import WorkflowConflictError
from asgi_durable.storage.records import WorkflowRecord

__all__ = ["find_conflict"]

_MISSING = object()


def find_conflict(
    call: Call, data: bytes, existing: WorkflowRecord
) -> WorkflowConflictError | None:
    """Return the error of a call whose id belongs to a workflow that it does not mean.

    Only readable arguments are compared: where a recorded argument cannot be read any more, as
    its class was removed, the call attaches.

    Args:
        call: The call.
        data: Its arguments, encoded.
        existing: The workflow that has the id.
    """
    definition, workflow_id = call.definition, existing.workflow_id
    if existing.name != definition.name or existing.is_request:
        return WorkflowConflictError(workflow_id, wanted=definition.name, existing=existing.name)
    if existing.input in (None, data) or call.options.on_conflict == "attach":
        return None
    if _is_replay_of(call, existing):
        return None
    differing = _differing_parameters(definition, data, existing.input or b"")
    if not differing:
        return None
    return WorkflowConflictError(
        workflow_id, wanted=definition.name, existing=existing.name, parameters=differing
    )


def _is_replay_of(call: Call, existing: WorkflowRecord) -> bool:
    """Tell whether a workflow was started by this very call, in an earlier execution."""
    if call.parent is None:
        return False
    parent, number = call.parent
    return (existing.parent_id, existing.parent_step) == (parent.workflow_id, number)


def _differing_parameters(
    definition: WorkflowDefinition, data: bytes, recorded: bytes
) -> tuple[str, ...]:
    """Return the names of the parameters that two encoded inputs differ in."""
    codec = definition.registry.codec
    try:
        wanted, existing = map(definition.values.read_arguments, (data, recorded))
        return tuple(_differing(definition, codec, wanted, existing))
    except Exception:
        # The class of a recorded value was removed, or its `__eq__` fails: there is no comparison.
        return ()


def _differing(
    definition: WorkflowDefinition,
    codec: Codec,
    wanted: Mapping[str, Any],
    existing: Mapping[str, Any],
) -> Iterator[str]:
    # Parameters of the function as it is now: another version may have had others.
    for name in definition.signature.parameters:
        default = definition.defaults.get(name, _MISSING)
        one, other = wanted.get(name, default), existing.get(name, default)
        is_known = one is not _MISSING and other is not _MISSING
        if is_known and one is not other and not _is_equal(codec, one, other):
            yield name


def _is_equal(codec: Codec, one: Any, other: Any) -> bool:
    """Tell whether two values are equal in the members that both have."""
    members = _members_of_both(one, other)
    if members is not None:
        return all(_is_equal(codec, *pair) for pair in members)
    # NaN is not equal to itself, but its record is.
    return bool(one == other) or codec.encode(one) == codec.encode(other)


def _members_of_both(one: Any, other: Any) -> Iterable[tuple[Any, Any]] | None:
    """Return the pairs of members to compare; ``None`` to compare the values themselves."""
    if type(one) is not type(other):
        return None
    if dataclasses.is_dataclass(one) or is_pydantic_model(type(one)):
        # A field with a default that is newer than the record is missing in it.
        members, others = getattr(one, "__dict__", {}), getattr(other, "__dict__", {})
        return [(members[name], others[name]) for name in members.keys() & others.keys()] or None
    if isinstance(one, dict) and one.keys() == other.keys():
        # Their order means nothing.
        return [(member, other[key]) for key, member in one.items()]
    if isinstance(one, (list, tuple)) and len(one) == len(other):
        return zip(one, other, strict=True)
    return None
