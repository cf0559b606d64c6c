"""The example order service in a process of its own, killed for good."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.processes.clients import post_until_answered
from support.processes.order_files import outbox, query, recorded_steps
from support.processes.server import Server

pytestmark = pytest.mark.anyio

ORDERS = 200
KILLS = 20
LONGEST_LIFE_SECONDS = 0.3


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as server:
        yield server


def order(number: int) -> dict[str, object]:
    return {"user_id": f"user-{number}", "item_id": "book", "quantity": number + 1}


def confirmed_users(folder: Path) -> dict[str, int]:
    """Return how many confirmations each user got, for orders whose step is recorded."""
    recorded = recorded_steps(folder, "send_confirmation")
    users = query(folder, "SELECT workflow_id, input FROM asgi_durable_workflows")
    lines = outbox(folder)
    counts = Counter({line.rpartition(" ")[2]: 0 for line in lines})
    for line, count in lines.items():
        counts[line.rpartition(" ")[2]] += count
    done = {user_of(data) for workflow_id, data in users if workflow_id in recorded}
    return {user: counts[user] for user in done}


def user_of(data: object) -> str:
    assert isinstance(data, bytes)
    return data.partition(b'"user_id":"')[2].partition(b'"')[0].decode()


async def test_200_orders_survive_20_kills_each_exactly_once(
    tmp_path: Path, server: Server
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201  shown where the test fails
    moments = random.Random(seed)
    url = f"{server.url}/orders"
    at_once = asyncio.Semaphore(8)
    later_confirmations: list[tuple[str, int, int]] = []

    async with httpx.AsyncClient(timeout=30.0) as client:

        async def place(number: int) -> httpx.Response:
            async with at_once:
                return await post_until_answered(client, url, f"key-{number}", order(number))

        batch = ORDERS // KILLS
        tasks = []
        known: dict[str, int] = {}
        for kill in range(KILLS):
            tasks += [asyncio.ensure_future(place(kill * batch + n)) for n in range(batch)]
            await asyncio.sleep(moments.uniform(0.0, LONGEST_LIFE_SECONDS))
            server.kill()
            now = confirmed_users(tmp_path)
            later_confirmations += [(u, known[u], now[u]) for u in known if now[u] != known[u]]
            known = now
            await asyncio.to_thread(server.start)
        answers = await asyncio.gather(*tasks)
        repetitions = [
            await client.post(url, json=order(number), headers={"Idempotency-Key": f"key-{number}"})
            for number in range(ORDERS)
        ]

    assert server.kills >= KILLS
    rows = query(tmp_path, "SELECT user_id, count(*) FROM orders GROUP BY user_id")
    assert sorted(rows) == sorted((f"user-{n}", 1) for n in range(ORDERS))
    assert {answer.status_code for answer in answers} == {200}
    assert [again.content for again in repetitions] == [answer.content for answer in answers]
    assert {again.headers["idempotent-replayed"] for again in repetitions} == {"true"}
    final = confirmed_users(tmp_path)
    assert min(final[f"user-{n}"] for n in range(ORDERS)) >= 1
    later_confirmations += [(u, known[u], final[u]) for u in known if final[u] != known[u]]
    assert later_confirmations == []


async def test_a_job_killed_after_each_of_its_steps_finishes_without_repeating_one(
    tmp_path: Path,
) -> None:
    with Server(tmp_path, environment={"ORDERS_DELAY": "0.2"}) as server:
        async with httpx.AsyncClient(timeout=30.0) as client:
            started = (await client.post(f"{server.url}/jobs", json={"parts": 5})).json()
            job = f"{server.url}/jobs/{started['workflow_id']}"
            for steps in range(1, 5):
                lines = await lines_once_recorded(tmp_path, steps)
                server.kill()
                assert max(lines.values()) == 1
                server.start()
            async with asyncio.timeout(60):
                # The last step's record goes out with the end: kill as soon as it has run.
                while len(outbox(tmp_path)) < 5:
                    await asyncio.sleep(0.001)
            server.kill()
            server.start()
            async with asyncio.timeout(60):
                while (status := (await client.get(job)).json())["status"] != "SUCCESS":
                    await asyncio.sleep(0.05)

    assert status["result"] == {"processed": [0, 1, 2, 3, 4]}
    counts = outbox(tmp_path)
    assert len(counts) == 5
    # A part that was under way when the server died ran again; no recorded one did.
    assert sum(counts.values()) <= 5 + server.kills


async def lines_once_recorded(folder: Path, steps: int) -> Counter[str]:
    """Wait until this many steps are durable; return the lines of those steps."""
    async with asyncio.timeout(60):
        while True:
            (count,) = query(folder, "SELECT count(*) FROM asgi_durable_steps")[0]
            if isinstance(count, int) and count >= steps:
                lines = outbox(folder)
                return Counter(
                    {line: n for line, n in lines.items() if int(line.split()[1]) < steps}
                )
            await asyncio.sleep(0.01)


async def test_50_requests_with_one_key_are_one_execution(tmp_path: Path, server: Server) -> None:
    limits = httpx.Limits(max_connections=50)
    async with httpx.AsyncClient(timeout=30.0, limits=limits) as client:
        url = f"{server.url}/orders"
        answers = await asyncio.gather(
            *(post_until_answered(client, url, "one", order(1)) for _ in range(50))
        )

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert query(tmp_path, "SELECT count(*) FROM orders") == [(1,)]
    assert sum(outbox(tmp_path).values()) == 1


async def test_a_clean_stop_hands_over_and_a_start_goes_on(tmp_path: Path) -> None:
    with Server(tmp_path, environment={"ORDERS_DELAY": "0.1"}) as server:
        async with httpx.AsyncClient(timeout=30.0) as client:
            started = (await client.post(f"{server.url}/jobs", json={"parts": 100})).json()
            await lines_once_recorded(tmp_path, 3)
            server.terminate()
            done_before = query(tmp_path, "SELECT count(*) FROM asgi_durable_steps")[0][0]
            server.environment = {"ORDERS_DELAY": "0"}
            server.start()
            job = f"{server.url}/jobs/{started['workflow_id']}"
            async with asyncio.timeout(60):
                while (status := (await client.get(job)).json())["status"] != "SUCCESS":
                    await asyncio.sleep(0.05)

    assert len(status["result"]["processed"]) == 100
    assert isinstance(done_before, int)
    assert done_before >= 3
    assert outbox(tmp_path).most_common(1)[0][1] <= 2


async def test_a_database_that_cannot_be_used_ends_the_start_with_a_sentence(
    tmp_path: Path,
) -> None:
    (tmp_path / "orders.db").write_text("this is no database, but it is somebody's file\n" * 50)

    server = Server(tmp_path)
    with pytest.raises(AssertionError):
        server.start()

    assert server.wait() == 3
    assert "orders.db: file is not a database" in server.log
