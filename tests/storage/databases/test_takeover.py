"""The contract of ``take_over``: which workflows are taken, and how crashes are counted."""

from __future__ import annotations

import asyncio
import time

import pytest
from support.databases.storages import (
    TINY_LEASE_SECONDS,
    WORK,
    OpenStorage,
    beat,
    kinds,
    orphans_appear,
    take_one,
    take_over,
    until,
)
from support.records import EXECUTOR, OTHER, record, request, step, success, workflow

from asgi_durable.storage.protocol import Runnable, Storage
from asgi_durable.storage.writes import (
    ClaimRequest,
    ClearCrashCount,
    OutcomeKind,
    ReleaseWorkflow,
    StartWorkflow,
    Write,
)

pytestmark = pytest.mark.anyio

# The largest expected difference between the database's clock and ours, in seconds.
CLOCKS = 0.01
DONE, FENCED = OutcomeKind.DONE, OutcomeKind.FENCED


async def leave_behind(storage: Storage, *writes: Write) -> None:
    """Commit writes of ``executor-2``, and let it leave."""
    assert set(await kinds(storage, *writes)) == {DONE}
    await storage.retire(OTHER)


def started(workflow_id: str, **fields: object) -> StartWorkflow:
    return StartWorkflow(workflow(workflow_id, **{"executor_id": OTHER} | fields))


async def test_what_an_executor_left_is_taken_over_at_once_and_is_no_crash(
    storage: Storage, other: Storage
) -> None:
    await leave_behind(other, started("w"), record(step(), OTHER))

    taken = (await take_one(storage)).workflow

    assert (taken.workflow_id, taken.executor_id, taken.attempts) == ("w", EXECUTOR, 2)
    assert (taken.crashes, taken.crashed_at_entry) == (0, 0)
    assert taken == await storage.get_workflow("w")
    assert await kinds(storage, record(step(number=1)), success()) == [DONE, DONE]
    assert await kinds(other, record(step(number=2), OTHER)) == [FENCED]


async def test_what_was_released_is_taken_over_and_is_no_crash(
    storage: Storage, other: Storage
) -> None:
    await other.commit([started("w"), ReleaseWorkflow("w", OTHER)])

    found = await take_one(storage)

    taken = found.workflow
    assert (taken.executor_id, taken.attempts, taken.crashes) == (EXECUTOR, 2, 0)
    assert await kinds(other, record(step(), OTHER)) == [FENCED]
    # The time of that is not stored.
    assert found.free_seconds is None


async def passed(seconds: float) -> None:
    """Wait until this many seconds have passed."""
    ends_at = time.monotonic() + seconds

    async def is_over() -> bool:
        return time.monotonic() >= ends_at

    await until(is_over)


async def test_it_is_told_for_how_long_what_was_left_has_been_free(
    storage: Storage, other: Storage
) -> None:
    leaves_at = time.monotonic()
    await leave_behind(other, started("w"))
    left_at = time.monotonic()
    await passed(0.2)

    takes_at = time.monotonic()
    found = await take_one(storage)

    assert found.free_seconds is not None
    assert takes_at - left_at - CLOCKS <= found.free_seconds
    assert found.free_seconds <= time.monotonic() - leaves_at + CLOCKS


async def test_what_a_dead_executor_had_is_free_since_the_end_of_its_lease(
    storage: Storage, open_storage: OpenStorage
) -> None:
    begins_at = time.monotonic()
    doomed = await open_storage("doomed", lease_seconds=TINY_LEASE_SECONDS)
    began_at = time.monotonic()
    await doomed.commit([started("w", executor_id="doomed")])
    # No executor looks for a while. The end of the lease counts, not its discovery.
    await passed(TINY_LEASE_SECONDS + 0.5)
    await orphans_appear(storage)

    takes_at = time.monotonic()
    found = await take_one(storage)

    assert found.free_seconds is not None
    assert takes_at - began_at - TINY_LEASE_SECONDS - CLOCKS <= found.free_seconds
    assert found.free_seconds <= time.monotonic() - begins_at - TINY_LEASE_SECONDS + CLOCKS


async def test_what_is_finished_or_waits_for_its_client_is_never_taken_over(
    storage: Storage, other: Storage
) -> None:
    await leave_behind(
        other,
        started("over"),
        success("over", executor_id=OTHER),
        ClaimRequest(request("r", executor_id=OTHER)),
        ClaimRequest(request("released", executor_id=OTHER)),
        ReleaseWorkflow("released", OTHER),
    )

    assert await take_over(storage) == []
    assert not (await beat(storage)).has_orphans


async def test_it_comes_in_order_of_id_up_to_a_limit(storage: Storage, other: Storage) -> None:
    await other.commit([started("b"), started("d"), ReleaseWorkflow("d", OTHER)])
    await leave_behind(other, started("e"), started("a"), started("c"))

    batches = [await take_over(storage, limit=2) for _ in range(4)]

    assert batches == [["a", "b"], ["c", "d"], ["e"], []]


async def test_functions_that_a_process_does_not_know_are_left(
    storage: Storage, other: Storage
) -> None:
    await leave_behind(other, started("a", name="work"), started("b", name="play"))

    assert await take_over(storage) == ["a"]

    left = await storage.get_workflow("b")
    assert left == workflow("b", name="play", executor_id=OTHER)
    both = Runnable(names=frozenset({"work", "play"}))
    assert await take_over(storage, runnable=both) == ["b"]


async def test_what_was_tried_in_vain_is_left(storage: Storage, other: Storage) -> None:
    await leave_behind(other, started("a"), started("b"))

    tried = Runnable(names=WORK.names, excluded_ids=frozenset({"a"}))

    assert await take_over(storage, runnable=tried) == ["b"]
    assert await take_over(storage) == ["a"]


async def test_a_function_that_needs_its_request_is_left_where_it_is_the_requests_child(
    storage: Storage, other: Storage
) -> None:
    await leave_behind(
        other,
        ClaimRequest(request("r", executor_id=OTHER)),
        started("child", parent_id="r", parent_step=0),
        started("no child"),
        started("other child", parent_id="r", parent_step=1, name="play"),
    )

    bound = Runnable(names=frozenset({"work", "play"}), bound_names=frozenset({"work"}))

    assert await take_over(storage, runnable=bound) == ["no child", "other child"]
    assert not (await beat(storage, runnable=bound)).has_orphans
    assert await take_over(storage) == ["child"]


@pytest.mark.parametrize("limit", [7, 1000])
async def test_two_at_once_share_everything_and_nothing_twice(
    storage: Storage, other: Storage, open_storage: OpenStorage, limit: int
) -> None:
    left = await open_storage("left")
    ids = [f"w{n:03}" for n in range(100)]
    await left.commit([StartWorkflow(workflow(i, executor_id="left")) for i in ids])
    await left.retire("left")

    async def take_all(storage: Storage, executor_id: str) -> list[str]:
        taken = []

        async def nothing_is_left() -> bool:
            taken.extend(await take_over(storage, executor_id, limit=limit))
            return not (await beat(storage, executor_id)).has_orphans

        await until(nothing_is_left)
        return taken

    ours, theirs = await asyncio.gather(take_all(storage, EXECUTOR), take_all(other, OTHER))

    assert sorted(ours + theirs) == ids
    for workflow_ids, executor_id in ((ours, EXECUTOR), (theirs, OTHER)):
        runs = await storage.load_runs(workflow_ids)
        assert {run.workflow.executor_id for run in runs} <= {executor_id}
        assert {run.workflow.attempts for run in runs} <= {2}


class Crashes:
    """Executors that take ``w`` over, one after the other, and die while they run it."""

    def __init__(self, survivor: Storage, open_storage: OpenStorage) -> None:
        self._survivor = survivor
        self._open_storage = open_storage
        self._count = 0

    async def start(self) -> None:
        """Start ``w``, and let its executor die."""
        executor_id, doomed = await self._doomed()
        await doomed.commit([StartWorkflow(workflow(executor_id=executor_id))])
        await orphans_appear(self._survivor)

    async def repeat(
        self, *, suspects: bool, step_number: int | None = None, acquits: bool = False
    ) -> int:
        """Take ``w`` over, maybe record a step, and die; return the crashes counted before."""
        executor_id, doomed = await self._doomed()
        taken = (await take_one(doomed, executor_id, suspects=suspects)).workflow
        if step_number is not None:
            outcome = await kinds(doomed, record(step(number=step_number), executor_id))
            assert outcome == [DONE]
        if acquits:
            assert await kinds(doomed, ClearCrashCount("w", executor_id)) == [DONE]
        await orphans_appear(self._survivor)
        return taken.crashes

    async def _doomed(self) -> tuple[str, Storage]:
        self._count += 1
        executor_id = f"doomed-{self._count}"
        doomed = await self._open_storage(executor_id, lease_seconds=TINY_LEASE_SECONDS)
        return executor_id, doomed


@pytest.fixture
def crashes(storage: Storage, open_storage: OpenStorage) -> Crashes:
    return Crashes(storage, open_storage)


async def crashes_and_entries(storage: Storage, *, suspects: bool) -> tuple[int, int]:
    taken = (await take_one(storage, suspects=suspects)).workflow
    return taken.crashes, taken.crashed_at_entry


async def test_the_first_death_of_its_owner_is_one_crash(
    storage: Storage, crashes: Crashes
) -> None:
    await crashes.start()

    assert await take_over(storage, suspects=True) == []
    assert await crashes_and_entries(storage, suspects=False) == (1, 0)


async def test_deaths_in_a_row_without_progress_are_added_up(
    storage: Storage, crashes: Crashes
) -> None:
    await crashes.start()

    assert await crashes.repeat(suspects=False) == 1
    assert await take_over(storage, suspects=False) == []
    assert await crashes.repeat(suspects=True) == 2
    assert await crashes_and_entries(storage, suspects=True) == (3, 0)


async def test_progress_between_two_deaths_makes_the_second_one_the_first(
    storage: Storage, crashes: Crashes
) -> None:
    await crashes.start()

    assert await crashes.repeat(suspects=False, step_number=0) == 1
    assert await crashes.repeat(suspects=False) == 1
    assert await crashes.repeat(suspects=True, step_number=1) == 2
    assert await take_over(storage, suspects=True) == []
    assert await crashes_and_entries(storage, suspects=False) == (1, 2)


async def test_a_child_is_progress(
    storage: Storage, other: Storage, open_storage: OpenStorage
) -> None:
    child = workflow("w#0", parent_id="w", parent_step=0, executor_id="doomed", name="play")
    doomed = await open_storage("doomed", lease_seconds=TINY_LEASE_SECONDS)
    await doomed.commit([StartWorkflow(workflow(executor_id="doomed")), StartWorkflow(child)])
    await orphans_appear(storage)

    assert await crashes_and_entries(storage, suspects=False) == (1, 1)


async def test_leaving_between_two_deaths_is_no_crash_and_forgets_none(
    storage: Storage, crashes: Crashes, open_storage: OpenStorage
) -> None:
    await crashes.start()
    polite = await open_storage("polite")
    assert await take_over(polite, "polite") == ["w"]
    await polite.retire("polite")

    assert await crashes_and_entries(storage, suspects=False) == (1, 0)


async def test_suspects_and_others_are_taken_over_apart(
    storage: Storage, crashes: Crashes, open_storage: OpenStorage
) -> None:
    await crashes.start()
    assert await crashes.repeat(suspects=False) == 1
    innocent = await open_storage("innocent")
    await innocent.commit([StartWorkflow(workflow("innocent", executor_id="innocent"))])
    await innocent.retire("innocent")

    assert await take_over(storage, suspects=False) == ["innocent"]
    assert await take_over(storage, suspects=True) == ["w"]


async def test_the_next_crash_of_an_acquitted_workflow_is_the_first(
    storage: Storage, crashes: Crashes
) -> None:
    await crashes.start()
    assert await crashes.repeat(suspects=False) == 1

    assert await crashes.repeat(suspects=True, acquits=True) == 2

    assert await crashes_and_entries(storage, suspects=False) == (1, 0)


async def test_only_the_owner_acquits(storage: Storage, other: Storage) -> None:
    await storage.commit([StartWorkflow(workflow(crashes=2))])

    assert await kinds(other, ClearCrashCount("w", OTHER)) == [DONE]

    found = await storage.get_workflow("w")
    assert found is not None
    assert found.crashed_at_entry == 0
