"""The verbs of the async and the blocking side, and of the engines behind them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from asgi_durable import BlockingWorkflowHandle, Durable, WorkflowHandle
from asgi_durable.engine.blocking_engine import BlockingEngine, Verb
from asgi_durable.engine.engine import Engine
from asgi_durable.verbs.awaitable import AwaitableVerbs, WorkflowCalls
from asgi_durable.verbs.blocking import Blocking, BlockingCalls
from asgi_durable.verbs.table import HANDLE_VERBS, VERBS

SIDES = [
    *((verb, Durable, Blocking) for verb in VERBS),
    *((verb, WorkflowHandle, BlockingWorkflowHandle) for verb in HANDLE_VERBS),
]
_NAMES = [verb.name for verb, _, _ in SIDES]
# Not verbs, but on both sides.
HELPERS = {"options", "session"}


def parameters(function: object) -> list[tuple[str, object, object]]:
    signature = inspect.signature(function)  # type: ignore[arg-type]
    return [(each.name, each.kind, each.default) for each in signature.parameters.values()]


def summary(documented: object) -> str:
    """Return the first line of a docstring, without a reference to the other side's."""
    first_line = (inspect.getdoc(documented) or "").partition("\n")[0]
    return first_line.partition("; see ")[0].rstrip(".")


def public(cls: type) -> set[str]:
    return {name for name in vars(cls) if not name.startswith("_")}


@pytest.mark.parametrize(("verb", "awaitable", "blocking"), SIDES, ids=_NAMES)
def test_a_verb_is_the_same_on_both_sides(
    verb: Verb[..., Any], awaitable: type, blocking: type
) -> None:
    here, there = getattr(awaitable, verb.name), getattr(blocking, verb.name)

    assert parameters(here) == parameters(there)
    assert summary(here) == summary(there) != ""


@pytest.mark.parametrize("verb", [*VERBS, *HANDLE_VERBS], ids=lambda verb: verb.name)
def test_a_verb_has_a_method_of_the_engine(verb: Verb[..., Any]) -> None:
    assert getattr(Engine, verb.method.__name__) is verb.method


def test_each_verb_is_in_the_table_once() -> None:
    names = [verb.name for verb in VERBS]
    handle_names = {verb.name for verb in HANDLE_VERBS}

    assert len(names) == len(set(names))
    assert public(WorkflowCalls) | public(AwaitableVerbs) == {*names, "options"}
    assert public(BlockingCalls) | public(Blocking) == {*names, *HELPERS}
    assert public(WorkflowHandle) == public(BlockingWorkflowHandle) == handle_names


def test_the_helpers_are_the_same_on_both_sides() -> None:
    assert parameters(Durable.options) == parameters(Blocking.options)
    assert summary(Durable.options) == summary(Blocking.options) != ""
    assert isinstance(inspect.getattr_static(Durable, "session"), property)
    assert isinstance(inspect.getattr_static(Blocking, "session"), property)


@pytest.mark.parametrize("name", sorted(public(BlockingEngine) - {"call", "start", "stop"}))
def test_a_call_of_the_blocking_engine_is_one_of_the_engine(name: str) -> None:
    here, there = getattr(Engine, name), getattr(BlockingEngine, name)

    assert parameters(here) == parameters(there)
    assert summary(here) == summary(there) != ""
