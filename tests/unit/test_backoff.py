"""Waits that grow longer each time."""

from __future__ import annotations

import random

import anyio
import pytest

from asgi_durable.concurrency.backoff import Backoff, is_worth_logging

pytestmark = pytest.mark.anyio


def test_waits_double_up_to_the_longest() -> None:
    backoff = Backoff(0.5, 3.0)

    assert [backoff.next() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert (backoff.attempt, backoff.seconds) == (6, 3.0)


def test_another_factor_counts() -> None:
    backoff = Backoff(1.0, 100.0, factor=3.0)

    assert [backoff.next() for _ in range(3)] == [1.0, 3.0, 9.0]


def test_a_reset_begins_again() -> None:
    backoff = Backoff(0.5, 3.0)
    backoff.next()

    backoff.reset()

    assert (backoff.attempt, backoff.next(), backoff.next()) == (1, 0.5, 1.0)


def test_jitter_makes_a_wait_longer_and_not_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.5)
    backoff = Backoff(1.0, 8.0, jitter=0.2)

    assert [backoff.next() for _ in range(3)] == pytest.approx([1.1, 2.2, 4.4])


async def test_a_wait_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(anyio, "sleep", sleep)
    backoff = Backoff(0.25, 1.0)

    await backoff.wait()
    await backoff.wait()

    assert waits == [0.25, 0.5]


def test_fewer_and_fewer_failures_are_logged() -> None:
    backoff = Backoff(0.0, 0.0)
    logged = [backoff.attempt for _ in range(20) if (backoff.is_worth_logging(), backoff.next())[0]]

    assert [number - 1 for number in logged] == [1, 2, 4, 8, 16]
    assert [number for number in range(1, 10) if is_worth_logging(number)] == [1, 2, 4, 8]
