"""The contract of ``Executors``: which executors are alive, and that dead ones write nothing."""

from __future__ import annotations

import asyncio
import time

import pytest
import sqlalchemy as sa
from support.databases.storages import (
    LEASE_SECONDS,
    PATIENCE_SECONDS,
    TINY_LEASE_SECONDS,
    WORK,
    Adapter,
    OpenStorage,
    beat,
    enter,
    is_alive,
    kinds,
    orphans_appear,
    process_that_owns_a_workflow,
    take_over,
    until,
)
from support.records import EXECUTOR, OTHER, record, request, step, success, workflow

from asgi_durable import StorageUnavailableError
from asgi_durable.storage.protocol import Runnable, Storage
from asgi_durable.storage.transaction_port import SlotTakenError, StepSlot
from asgi_durable.storage.writes import (
    ClaimRequest,
    ForgetRequest,
    OutcomeKind,
    ReleaseWorkflow,
    ResumeWorkflow,
    StartWorkflow,
)

pytestmark = pytest.mark.anyio

DONE, FENCED, RESUMED = OutcomeKind.DONE, OutcomeKind.FENCED, OutcomeKind.RESUMED
DOOMED = "doomed"
SLOT = StepSlot(workflow_id="w", step_number=0, executor_id=DOOMED)


@pytest.fixture
async def doomed(open_storage: OpenStorage) -> Storage:
    """A storage whose executor owns ``w`` and sends no heartbeats: its lease ends at once."""
    storage = await open_storage(DOOMED, lease_seconds=TINY_LEASE_SECONDS)
    await storage.commit([StartWorkflow(workflow(executor_id=DOOMED))])
    return storage


async def writes_are_fenced(storage: Storage, executor_id: str) -> None:
    writes = [
        StartWorkflow(workflow("new", executor_id=executor_id)),
        ClaimRequest(request("new", executor_id=executor_id)),
        ResumeWorkflow("w", executor_id, 5),
        record(step(), executor_id),
        success(executor_id=executor_id),
        ReleaseWorkflow("w", executor_id),
        ForgetRequest("w", executor_id),
    ]
    before = await storage.get_workflow("w")

    assert await kinds(storage, *writes) == [FENCED] * len(writes)

    assert await storage.get_workflow("w") == before
    assert await storage.get_workflow("new") is None


async def test_an_executor_is_alive_from_its_registration_on(storage: Storage) -> None:
    found = await beat(storage)

    assert (found.is_alive, found.has_orphans) == (True, False)


async def test_an_executor_that_is_unknown_is_not_alive(storage: Storage) -> None:
    assert not await is_alive(storage, "unknown")


async def test_what_a_living_executor_owns_is_no_orphan(storage: Storage, other: Storage) -> None:
    await storage.commit([StartWorkflow(workflow())])

    found = await beat(other, OTHER)

    assert not found.has_orphans
    assert await take_over(other, OTHER) == []


async def test_what_was_released_is_an_orphan(storage: Storage, other: Storage) -> None:
    await storage.commit([StartWorkflow(workflow()), ReleaseWorkflow("w", EXECUTOR)])

    found = await beat(other, OTHER)

    assert (found.is_alive, found.has_orphans) == (True, True)


@pytest.mark.parametrize(
    "runnable",
    [
        Runnable(names=frozenset()),
        Runnable(names=frozenset({"play"})),
        Runnable(names=WORK.names, excluded_ids=frozenset({"w"})),
    ],
    ids=["nothing", "another name", "an excluded id"],
)
async def test_what_a_process_cannot_run_is_no_orphan_to_it(
    storage: Storage, runnable: Runnable
) -> None:
    await storage.commit([StartWorkflow(workflow()), ReleaseWorkflow("w", EXECUTOR)])

    found = await beat(storage, runnable=runnable)

    assert not found.has_orphans


async def test_an_executor_that_left_is_not_alive_and_writes_nothing(storage: Storage) -> None:
    await storage.commit([StartWorkflow(workflow())])

    await storage.retire(EXECUTOR)

    await writes_are_fenced(storage, EXECUTOR)
    assert not await is_alive(storage)
    assert await take_over(storage, EXECUTOR) == []


async def test_an_executor_can_leave_twice_or_without_having_come(storage: Storage) -> None:
    await storage.retire(EXECUTOR)
    await storage.retire(EXECUTOR)
    await storage.retire("unknown")


async def test_an_executor_that_does_not_beat_is_declared_dead(
    storage: Storage, doomed: Storage
) -> None:
    await orphans_appear(storage)

    assert not await is_alive(doomed, DOOMED)


async def test_the_dead_write_nothing(storage: Storage, doomed: Storage) -> None:
    await orphans_appear(storage)

    await writes_are_fenced(doomed, DOOMED)


async def test_the_dead_take_over_nothing(storage: Storage, doomed: Storage) -> None:
    await orphans_appear(storage)

    assert await take_over(doomed, DOOMED) == []
    assert await take_over(storage) == ["w"]


async def test_the_dead_have_no_place_for_a_transaction(storage: Storage, doomed: Storage) -> None:
    await orphans_appear(storage)

    with pytest.raises(SlotTakenError):
        async with doomed.transaction(SLOT):
            pytest.fail("the application's code ran")


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
async def test_the_dead_cannot_commit_a_transaction_that_they_began_alive(
    storage: Storage, doomed: Storage, new_storage: Adapter, level: str
) -> None:
    if new_storage.one_writer:
        return  # no executor can be declared dead while a transaction is open
    async with storage.transaction(None) as transaction:
        await transaction.session.execute(sa.text("CREATE TABLE effects (name TEXT)"))

    # If the transaction cannot see the death, the database cannot order the two.
    with pytest.raises((SlotTakenError, StorageUnavailableError)):
        async with doomed.transaction(SLOT, isolation_level=level) as transaction:
            await transaction.session.execute(sa.text("INSERT INTO effects VALUES ('x')"))
            await orphans_appear(storage)
            await transaction.record(step())

    (run,) = await storage.load_runs(["w"])
    assert run.steps == ()
    async with storage.transaction(None) as transaction:
        result = await transaction.session.execute(sa.text("SELECT count(*) FROM effects"))
        assert result.scalar_one() == 0


async def test_a_dead_executors_storage_can_enter_a_new_one(
    storage: Storage, doomed: Storage
) -> None:
    await orphans_appear(storage)

    await enter(doomed, "reborn")

    found = await beat(doomed, "reborn")
    assert (found.is_alive, found.has_orphans) == (True, True)
    assert await take_over(doomed, "reborn") == ["w"]
    assert await kinds(doomed, record(step(), "reborn")) == [DONE]


async def test_a_request_of_a_dead_executor_is_resumed_by_its_retry(
    storage: Storage, doomed: Storage
) -> None:
    await doomed.commit([ClaimRequest(request(executor_id=DOOMED))])
    await orphans_appear(storage)

    assert await kinds(storage, ClaimRequest(request())) == [RESUMED]


async def test_a_workflow_of_a_dead_executor_is_resumed_by_its_caller(
    storage: Storage, doomed: Storage
) -> None:
    await orphans_appear(storage)

    assert await kinds(storage, ResumeWorkflow("w", EXECUTOR, 5)) == [DONE]

    assert await kinds(storage, record(step()), success()) == [DONE, DONE]


async def test_an_executor_that_beats_outlives_its_lease(
    storage: Storage, open_storage: OpenStorage
) -> None:
    lease_seconds = 1.0
    beating = await open_storage("beating", lease_seconds=lease_seconds)
    began_at = last_beat_at = time.monotonic()
    longest_gap = 0.0

    while time.monotonic() < began_at + 2.5 * lease_seconds:
        found = await beat(beating, "beating", lease_seconds=lease_seconds)
        longest_gap = max(longest_gap, time.monotonic() - last_beat_at)
        last_beat_at = time.monotonic()
        await beat(storage)
        await asyncio.sleep(0.02)

    # If the machine stood still between two heartbeats, the test proves nothing.
    assert found.is_alive or longest_gap > lease_seconds / 2


async def test_an_executor_that_beats_outlives_a_clock_that_is_set_forward(
    storage: Storage, other: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600.0)
    monkeypatch.setattr(time, "time_ns", lambda: int((now + 3600.0) * 1e9))

    for _ in range(5):
        await beat(other, OTHER)
        assert await is_alive(storage)


async def test_executors_of_one_process_live_and_die_on_their_own(
    storage: Storage, other: Storage
) -> None:
    await other.retire(OTHER)

    assert await is_alive(storage)
    assert await kinds(storage, StartWorkflow(workflow())) == [DONE]


async def test_a_process_that_was_killed_is_noticed_long_before_its_lease_ends(
    storage: Storage, new_storage: Adapter
) -> None:
    if not new_storage.notices_kills:
        pytest.skip("nothing but its lease says that an executor lives")
    with process_that_owns_a_workflow(new_storage, "killed") as process:
        found = await beat(storage)
        assert not found.has_orphans
        process.kill()
        process.wait(PATIENCE_SECONDS)
        killed_at = time.monotonic()

        await orphans_appear(storage)

        assert time.monotonic() - killed_at < LEASE_SECONDS / 2
        assert await take_over(storage) == ["w"]


async def test_who_lives_is_not_missing(storage: Storage, other: Storage) -> None:
    assert not await storage.is_missing(OTHER)
    assert not await storage.is_missing(EXECUTOR)
    assert not await other.is_missing(EXECUTOR)


async def test_who_left_is_dead_or_never_came_is_missing(storage: Storage, doomed: Storage) -> None:
    await orphans_appear(storage)
    await storage.retire(EXECUTOR)

    missing = [await doomed.is_missing(name) for name in (EXECUTOR, DOOMED, "unknown")]
    assert missing == [True, True, True]


async def test_whose_lease_has_run_out_is_missing_before_anybody_declares_it_dead(
    storage: Storage, doomed: Storage
) -> None:
    await until(lambda: storage.is_missing(DOOMED))

    assert await is_alive(doomed, DOOMED)


async def test_a_process_that_was_killed_is_missing_before_anybody_declares_it_dead(
    storage: Storage, new_storage: Adapter
) -> None:
    if not new_storage.notices_kills:
        pytest.skip("nothing but its lease says that an executor lives")
    with process_that_owns_a_workflow(new_storage, "killed") as process:
        assert not await storage.is_missing("killed")
        process.kill()
        process.wait(PATIENCE_SECONDS)

        await until(lambda: storage.is_missing("killed"))

    progress = await storage.get_progress("w")
    assert progress is not None
    assert progress.is_owned


class Inbox:
    """The messages that were sent to an executor; filled on any thread."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    async def is_filled(self) -> bool:
        return bool(self.messages)


@pytest.fixture
async def inboxes(open_storage: OpenStorage) -> dict[str, Inbox]:
    """The inboxes of two executors, each in a storage of its own."""
    inboxes = {name: Inbox() for name in ("a", "b")}
    for name, inbox in inboxes.items():
        await open_storage(name, on_message=inbox.messages.append)
    return inboxes


async def test_a_message_reaches_its_executor_alone(
    storage: Storage, inboxes: dict[str, Inbox], new_storage: Adapter
) -> None:
    await storage.send("a", "for a")
    await storage.send("b", "for b")

    if new_storage.sends_messages:
        await until(inboxes["a"].is_filled)
        await until(inboxes["b"].is_filled)
    expected = [["for a"], ["for b"]] if new_storage.sends_messages else [[], []]
    assert [inbox.messages for inbox in inboxes.values()] == expected


async def test_a_message_to_all_reaches_all_others(
    inboxes: dict[str, Inbox], open_storage: OpenStorage, new_storage: Adapter
) -> None:
    own = Inbox()
    sender = await open_storage("sender", on_message=own.messages.append)

    await sender.send(None, "hello")
    await sender.send("sender", "note to self")

    if new_storage.sends_messages:
        for inbox in (*inboxes.values(), own):
            await until(inbox.is_filled)
    expected = [["hello"], ["hello"], ["note to self"]] if new_storage.sends_messages else [[]] * 3
    assert [inbox.messages for inbox in (*inboxes.values(), own)] == expected


async def test_messages_keep_their_text(
    storage: Storage, inboxes: dict[str, Inbox], new_storage: Adapter
) -> None:
    message = "r'\"\\ größe 🦊 \n" * 20

    await storage.send("a", message)

    if new_storage.sends_messages:
        await until(inboxes["a"].is_filled)
        assert inboxes["a"].messages == [message]


async def test_a_message_to_nobody_is_lost(storage: Storage) -> None:
    await storage.send("unknown", "hello")
