"""The schedule of retries."""

from __future__ import annotations

import pytest

from asgi_durable import RetryPolicy


def test_the_default_makes_three_attempts() -> None:
    assert RetryPolicy().max_attempts == 3


def test_waits_grow_by_the_backoff_up_to_the_longest() -> None:
    policy = RetryPolicy(initial_interval=1.0, backoff=2.0, max_interval=5.0, jitter=0.0)

    assert [policy.delay_seconds(n) for n in (1, 2, 3, 4, 5000)] == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_jitter_lengthens_a_wait_by_its_share_at_most() -> None:
    policy = RetryPolicy(initial_interval=10.0, jitter=0.1)

    assert all(10.0 <= policy.delay_seconds(1) <= 11.0 for _ in range(100))


@pytest.mark.parametrize(
    "numbers",
    [
        {"max_attempts": 0},
        {"initial_interval": -1.0},
        {"backoff": 0.5},
        {"max_interval": -1.0},
        {"jitter": 1.5},
    ],
)
def test_numbers_that_make_no_schedule_are_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(numbers))):
        RetryPolicy(**numbers)  # type: ignore[arg-type]


def test_retry_on_takes_classes_or_a_function() -> None:
    by_class = RetryPolicy(retry_on=(KeyError, OSError))
    by_question = RetryPolicy(retry_on=lambda error: "again" in str(error))

    assert by_class.wants_retry_of(FileNotFoundError())
    assert not by_class.wants_retry_of(ValueError())
    assert by_question.wants_retry_of(ValueError("try again"))
    assert not by_question.wants_retry_of(ValueError("no"))
