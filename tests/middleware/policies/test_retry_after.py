"""When the retry of a request that failed may be made."""

from __future__ import annotations

import datetime
import json
from email.utils import format_datetime

import pytest
from support.asgi import Exchange, answer, exchange, keyed

from asgi_durable import Durable, DurableError, DurableUsageError, IdempotencyPolicy, RetryPolicy
from asgi_durable.middleware.policies.retry_after import policy_delay, response_delay

pytestmark = pytest.mark.anyio

POLICY = IdempotencyPolicy(retry_delay=3.0, max_lifetime=1000.0)
EXPONENTIAL = RetryPolicy(initial_interval=2.0, backoff=3.0, max_interval=20.0, jitter=0.0)


def delay(value: str | None, policy: IdempotencyPolicy = POLICY, attempts: int = 1) -> float:
    headers = [] if value is None else [(b"Retry-After", value.encode("latin-1"))]
    said = response_delay(policy, headers)
    return policy_delay(policy, attempts) if said is None else said


def from_now(seconds: float) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 07 ", 7.0),
        ("0", 0.0),
        ("1000", 1000.0),
        ("1001", 1000.0),
        ("9" * 5000, 1000.0),
    ],
    ids=lambda value: str(value)[:9],
)
def test_seconds_of_the_response_count_within_the_lifetime(value: str, seconds: float) -> None:
    assert delay(value) == seconds


def test_a_date_of_the_response_counts() -> None:
    in_english = format_datetime(from_now(100), usegmt=True)
    elsewhere = from_now(100).astimezone(datetime.timezone(datetime.timedelta(hours=5)))

    for value in (in_english, format_datetime(elsewhere), in_english.replace("GMT", "-0000")):
        assert 98 < delay(value) <= 100


def test_a_date_that_is_over_or_far_is_bounded() -> None:
    assert delay(format_datetime(from_now(-100), usegmt=True)) == 0.0
    assert delay(format_datetime(from_now(1e9), usegmt=True)) == 1000.0


@pytest.mark.parametrize(
    "value", [None, "", "-1", "1.5", "soon", "\xb2", "Mon, 99 Foo 2026 99:99:99 GMT"]
)
def test_without_anything_legible_the_policy_counts(value: str | None) -> None:
    assert delay(value) == 3.0
    assert delay(value, IdempotencyPolicy()) == 0.0


def test_a_policy_may_make_it_longer_and_longer() -> None:
    policy = IdempotencyPolicy(retry_delay=EXPONENTIAL)

    assert [delay(None, policy, attempts) for attempts in (1, 2, 3, 4, 1000)] == [2, 6, 18, 20, 20]
    assert delay("1", policy, 3) == 1.0


@pytest.mark.parametrize("wrong", [-1.0, float("inf"), float("nan")])
def test_a_delay_that_cannot_be_meant_is_refused(wrong: float) -> None:
    with pytest.raises(DurableUsageError, match="retry_delay"):
        IdempotencyPolicy(retry_delay=wrong)


class Flaky:
    """An application that fails as a test asks for."""

    def __init__(self, url: str, **policy: object) -> None:
        self.durable = Durable(url, idempotency=IdempotencyPolicy(**policy))
        self.app = self.durable.wrap(self._serve)
        self.headers: list[tuple[bytes, bytes]] = []
        self.status = 503
        self.calls = 0

    async def post(self) -> Exchange:
        return await exchange(self.app, keyed(), b"{}")

    async def _serve(self, scope, receive, send) -> None:
        self.calls += 1
        await answer(send, b"down", status=self.status, headers=self.headers)


async def test_a_failed_response_without_a_retry_time_gets_one(url: str) -> None:
    flaky = Flaky(url, retry_delay=6.5)
    async with flaky.durable:
        failed, again = await flaky.post(), await flaky.post()

    assert (failed.status, failed.body, failed.headers("retry-after")) == (503, b"down", ["7"])
    assert (again.status, json.loads(again.body)["code"]) == (503, "RETRY_LATER")
    assert again.headers("retry-after") == ["7"]
    assert flaky.calls == 1


async def test_a_retry_time_of_the_response_is_passed_on_unchanged(url: str) -> None:
    flaky = Flaky(url, retry_delay=60.0)
    async with flaky.durable:
        flaky.headers = [(b"Retry-After", b"0")]
        failed = await flaky.post()
        flaky.headers = [(b"Retry-After", b"000000000000000000000000000000000000007")]
        again = await flaky.post()

    assert failed.headers("retry-after") == ["0"]
    assert again.headers("retry-after") == ["000000000000000000000000000000000000007"]
    assert flaky.calls == 2


async def test_the_retry_time_in_the_response_counts(url: str) -> None:
    jittery = RetryPolicy(initial_interval=100.0, jitter=1.0)
    durable = Durable(url, idempotency=IdempotencyPolicy(retry_delay=jittery))

    async def fail(scope, receive, send) -> None:
        raise DurableError("down", status_code=503)

    app = durable.wrap(fail)
    async with durable:
        tries = [[await exchange(app, keyed(f"k{n}"), b"{}") for _ in range(2)] for n in range(20)]

    for failed, again in tries:
        assert json.loads(again.body)["code"] == "RETRY_LATER"
        told, left = (int(one.headers("retry-after")[0]) for one in (failed, again))
        assert told - 30 < left <= told


async def test_an_absurd_time_ends_with_the_requests_lifetime(url: str) -> None:
    flaky = Flaky(url, max_lifetime=60.0)
    flaky.headers = [(b"retry-after", b"9" * 400)]
    async with flaky.durable:
        await flaky.post()
        refused = await flaky.post()

    assert refused.headers("retry-after") == ["60"]


async def test_a_response_that_is_final_makes_nobody_wait(url: str) -> None:
    flaky = Flaky(url, retry_delay=60.0, store_4xx=True)
    flaky.status = 409
    async with flaky.durable:
        first, again = await flaky.post(), await flaky.post()

    assert (first.status, again.status, flaky.calls) == (409, 409, 1)
    assert again.headers("idempotent-replayed") == ["true"]
    assert first.headers("retry-after") == again.headers("retry-after") == []


async def test_a_refusal_that_is_no_failure_makes_nobody_wait(url: str) -> None:
    flaky = Flaky(url, retry_delay=60.0)
    flaky.status, flaky.headers = 429, [(b"retry-after", b"9")]
    async with flaky.durable:
        statuses = [(await flaky.post()).status for _ in range(2)]

    assert (statuses, flaky.calls) == ([429, 429], 2)
