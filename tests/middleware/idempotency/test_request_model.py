"""The life of a keyed request as a model, all of whose interleavings are tried.

Two processes serve up to three sendings of one request. Its handler runs a transaction, then a
step with an effect outside, and responds with the step's result. Processes crash, leases run
out (of a process that is only slow as well), and the handler fails once. Each rule can be taken
out, and then something has to break: else it would not be one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

PROCESSES = 2


@dataclass(frozen=True)
class Rules:
    """Rules that keep a request from being done twice, lost or stuck.

    Attributes:
        fence: Only the owner of the row changes it, or its log.
        kept_log: A failure leaves the log as it is.
        expiry: A row whose owner's lease has run out is free.
        committed_first: A response is committed before it is sent.
    """

    fence: bool = True
    kept_log: bool = True
    expiry: bool = True
    committed_first: bool = True


@dataclass(frozen=True)
class Attempt:
    """A process that carries the request out.

    Attributes:
        run: Which claim of the row it is.
        at: The next thing to do: transaction, effect, record, commit, send.
        transacted: True if the log said so when it was read, or it was done since.
        value: The step's result.
    """

    run: int
    at: str
    transacted: bool
    value: int | None


@dataclass(frozen=True)
class World:
    """All that matters: the row, its log, the world outside, and what can still happen."""

    row: str = "ABSENT"
    run: int = 0
    lease: bool = False
    transacted: bool = False
    recorded: int | None = None
    answer: int | None = None
    transactions: int = 0
    effects: int = 0
    shown: frozenset[int] = frozenset()
    attempts: tuple[Attempt | None, ...] = (None,) * PROCESSES
    sendings: int = 3
    crashes: int = 2
    expiries: int = 2
    failures: int = 1

    def with_attempt(self, process: int, attempt: Attempt | None) -> World:
        attempts = tuple(
            attempt if number == process else other for number, other in enumerate(self.attempts)
        )
        return replace(self, attempts=attempts)


def successors(world: World, rules: Rules) -> Iterator[World]:
    """Return what may happen next."""
    for process, attempt in enumerate(world.attempts):
        if attempt is None:
            if world.sendings:
                yield served(replace(world, sendings=world.sendings - 1), process, rules)
            continue
        yield gone_on(world, process, attempt, rules)
        if attempt.at == "record" and world.failures:
            yield failed(replace(world, failures=world.failures - 1), process, attempt, rules)
        if world.crashes:
            yield replace(world, crashes=world.crashes - 1).with_attempt(process, None)
    if world.lease and world.expiries:
        yield replace(world, lease=False, expiries=world.expiries - 1)


def served(world: World, process: int, rules: Rules) -> World:
    """A sending arrives: it gets a response or a request to come back, or it claims the row."""
    if world.row == "DONE":
        assert world.answer is not None
        return replace(world, shown=world.shown | {world.answer})
    if world.row == "RUNNING" and (world.lease or not rules.expiry):
        return world
    attempt = Attempt(world.run + 1, "transaction", world.transacted, world.recorded)
    claimed = replace(world, row="RUNNING", run=world.run + 1, lease=True)
    return claimed.with_attempt(process, attempt)


def gone_on(  # noqa: PLR0911  one for each thing that may come next
    world: World, process: int, attempt: Attempt, rules: Rules
) -> World:
    """An attempt does what comes next; what it may not do ends it without a word."""
    owns = world.row == "RUNNING" and world.run == attempt.run
    may_write = owns or not rules.fence
    lost = world.with_attempt(process, None)
    if attempt.at == "transaction":
        if not attempt.transacted:
            # Its record is a row of the log; there is one place for it.
            if not may_write or world.transacted:
                return lost
            world = replace(world, transacted=True, transactions=world.transactions + 1)
        following = "effect" if attempt.value is None else "commit"
        return world.with_attempt(process, replace(attempt, at=following, transacted=True))
    if attempt.at == "effect":
        happened = replace(world, effects=world.effects + 1)
        return happened.with_attempt(process, replace(attempt, at="record", value=world.effects))
    if attempt.at == "record":
        if not may_write or world.recorded is not None:
            return lost
        recorded = replace(world, recorded=attempt.value)
        return recorded.with_attempt(process, replace(attempt, at="commit"))
    assert attempt.value is not None
    if attempt.at == "send":
        return replace(world, shown=world.shown | {attempt.value}).with_attempt(process, None)
    if not rules.committed_first:
        world = replace(world, shown=world.shown | {attempt.value})
    if not may_write or world.row == "DONE":
        return world.with_attempt(process, None)
    done = replace(world, row="DONE", lease=False, answer=attempt.value)
    return done.with_attempt(process, replace(attempt, at="send"))


def failed(world: World, process: int, attempt: Attempt, rules: Rules) -> World:
    """The handler fails: the row is free for its retry."""
    world = world.with_attempt(process, None)
    if rules.fence and not (world.row == "RUNNING" and world.run == attempt.run):
        return world
    world = replace(world, row="FREE", lease=False, answer=None)
    return world if rules.kept_log else replace(world, transacted=False, recorded=None)


def wrong(world: World, following: list[World]) -> str | None:
    """Return what is wrong in a world, and with what may follow; ``None`` for nothing."""
    if world.transactions > 1:
        return "a transaction was done twice"
    if len(world.shown) > 1:
        return "one key had two answers"
    if world.row == "DONE" and any(after.row != "DONE" for after in following):
        return "a finished request was not finished any more"
    if world.answer is not None and world.answer != world.recorded:
        return "the answer is not what is recorded"
    is_idle = world.sendings and not any(world.attempts) and not world.lease
    if is_idle and world.row != "DONE" and not any(any(w.attempts) for w in following):
        return "nobody can go on any more"
    return None


def explore(rules: Rules) -> tuple[int, set[str]]:
    """Return how many worlds there are, and what is wrong in any of them."""
    seen, waiting, found = {World()}, [World()], set()
    while waiting:
        world = waiting.pop()
        following = list(successors(world, rules))
        if problem := wrong(world, following):
            found.add(problem)
        for after in following:
            if after not in seen:
                seen.add(after)
                waiting.append(after)
    return len(seen), found


def test_every_interleaving_ends_with_one_response_and_one_transaction() -> None:
    worlds, found = explore(Rules())

    assert found == set()
    assert worlds > 1000


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        (Rules(fence=False), "a finished request was not finished any more"),
        (Rules(kept_log=False), "a transaction was done twice"),
        (Rules(expiry=False), "nobody can go on any more"),
    ],
    ids=["fence", "kept log", "expiry"],
)
def test_no_rule_can_be_left_out(rules: Rules, problem: str) -> None:
    _, found = explore(rules)

    assert problem in found


def test_a_durable_log_makes_a_response_safe_before_it_is_committed() -> None:
    # A response that is sent although its commit failed: the retry comes to the same one.
    _, found = explore(Rules(committed_first=False))

    assert found == set()
