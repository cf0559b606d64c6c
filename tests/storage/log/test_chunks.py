"""The contract of ``StepLog`` for the chunks of responses that are recorded as streams."""

from __future__ import annotations

import pytest
from support.databases.storages import kinds
from support.records import EXECUTOR, OTHER, record, request, response, step, success

from asgi_durable.storage.protocol import PAGE_BYTES, Storage
from asgi_durable.storage.records import CUT_ALL, CUT_FOR_GOOD, ChunkRecord
from asgi_durable.storage.writes import (
    ClaimRequest,
    ForgetRequest,
    OutcomeKind,
    RecordChunk,
    ReleaseWorkflow,
)

pytestmark = pytest.mark.anyio

DONE, CONFLICT, FENCED = OutcomeKind.DONE, OutcomeKind.CONFLICT, OutcomeKind.FENCED
REJECTED = OutcomeKind.REJECTED


def chunk(
    end_offset: int,
    data: bytes = b"data",
    *,
    workflow_id: str = "r",
    cut_to: int | None = None,
) -> ChunkRecord:
    return ChunkRecord(workflow_id=workflow_id, end_offset=end_offset, cut_to=cut_to, data=data)


def stream(chunk: ChunkRecord, executor_id: str = EXECUTOR) -> RecordChunk:
    return RecordChunk(chunk, executor_id)


START = chunk(0, b"start", cut_to=CUT_ALL)


async def begin(storage: Storage, *chunks: ChunkRecord) -> None:
    writes = [ClaimRequest(request()), *map(stream, (START, *chunks))]
    assert set(await kinds(storage, *writes)) == {DONE}


async def test_pieces_are_read_in_order_behind_an_offset(storage: Storage, other: Storage) -> None:
    await begin(storage, chunk(4), chunk(8, b"more"))

    assert await other.read_chunks("r", -1) == [START, chunk(4), chunk(8, b"more")]
    assert await other.read_chunks("r", 4) == [chunk(8, b"more")]
    assert await other.read_chunks("r", 8) == []
    for unknown in ("unknown", "zero\0", "\ud800"):
        assert await other.read_chunks(unknown, -1) == []


async def test_a_page_is_so_long_or_one_piece(storage: Storage) -> None:
    half, long = PAGE_BYTES // 2, PAGE_BYTES * 3
    chunks = [
        chunk(half, b"a" * half),
        chunk(half * 2, b"b" * half),
        chunk(half * 3, b"c" * half),
        chunk(half * 3 + long, b"d" * long),
    ]
    await begin(storage, *chunks)

    assert await storage.read_chunks("r", -PAGE_BYTES) == [START]
    assert await storage.read_chunks("r", 0) == chunks[:2]
    assert await storage.read_chunks("r", half * 2) == chunks[2:3]
    assert await storage.read_chunks("r", half * 3) == chunks[3:]


async def test_many_pieces_are_recorded_at_once_with_steps_and_the_end(storage: Storage) -> None:
    end = success("r", output=None, response=response(body=None, stream_end=8))
    writes = [
        ClaimRequest(request()),
        stream(START),
        record(step("r")),
        stream(chunk(4)),
        stream(chunk(8)),
        end,
    ]

    assert set(await kinds(storage, *writes)) == {DONE}

    assert await storage.read_chunks("r", -1) == [START, chunk(4), chunk(8)]
    assert await storage.get_response("r") == response(body=None, stream_end=8)
    claimed = (await storage.commit([ClaimRequest(request())]))[0]
    assert claimed.response == response(body=None, stream_end=8)


async def test_a_piece_whose_answer_got_lost_is_recorded_once(storage: Storage) -> None:
    await begin(storage, chunk(4))

    assert await kinds(storage, stream(chunk(4)), stream(chunk(8))) == [DONE, DONE]

    assert await storage.read_chunks("r", 0) == [chunk(4), chunk(8)]


async def test_another_piece_in_its_place_is_left_alone(storage: Storage) -> None:
    await begin(storage, chunk(4))

    assert await kinds(storage, stream(chunk(4, b"else"))) == [CONFLICT]

    assert await storage.read_chunks("r", 0) == [chunk(4)]


async def test_who_does_not_own_the_request_records_no_piece(storage: Storage) -> None:
    await begin(storage)

    assert await kinds(storage, stream(chunk(4), OTHER)) == [FENCED]
    assert await kinds(storage, stream(chunk(4, cut_to=0), OTHER)) == [FENCED]
    assert await kinds(storage, stream(chunk(4, workflow_id="unknown"))) == [FENCED]
    await storage.commit([ReleaseWorkflow("r", EXECUTOR)])
    assert await kinds(storage, stream(chunk(4)), stream(chunk(8, cut_to=0))) == [FENCED] * 2

    assert await storage.read_chunks("r", 0) == []


async def test_the_dead_record_and_cut_no_pieces(storage: Storage) -> None:
    await begin(storage, chunk(4))
    await storage.retire(EXECUTOR)

    assert await kinds(storage, stream(chunk(8)), stream(chunk(9, cut_to=0))) == [FENCED] * 2

    assert await storage.read_chunks("r", 0) == [chunk(4)]


async def test_what_is_finished_gets_no_more_pieces(storage: Storage) -> None:
    await begin(storage)
    await storage.commit([success("r", output=None, response=response(body=None, stream_end=0))])

    assert await kinds(storage, stream(chunk(4))) == [FENCED]


async def test_a_cut_takes_the_place_of_what_is_behind_it(storage: Storage) -> None:
    await begin(storage, chunk(4), chunk(8), chunk(12))
    cut = chunk(13, b"cut", cut_to=4)

    assert await kinds(storage, stream(cut), stream(chunk(17))) == [DONE, DONE]
    assert await kinds(storage, stream(cut)) == [DONE]

    assert await storage.read_chunks("r", -1) == [START, chunk(4), cut, chunk(17)]


@pytest.mark.parametrize("cut_to", [CUT_ALL, CUT_FOR_GOOD])
async def test_a_new_start_cuts_all(storage: Storage, cut_to: int) -> None:
    await begin(storage, chunk(4))

    assert await kinds(storage, stream(chunk(5, b"again", cut_to=cut_to))) == [DONE]

    assert await storage.read_chunks("r", -1) == [chunk(5, b"again", cut_to=cut_to)]


async def test_pieces_of_other_requests_are_not_cut(storage: Storage) -> None:
    await begin(storage, chunk(4))
    await storage.commit([ClaimRequest(request("q")), stream(chunk(4, workflow_id="q"))])

    await storage.commit([stream(chunk(9, cut_to=CUT_ALL, workflow_id="q"))])

    assert await storage.read_chunks("r", -1) == [START, chunk(4)]


async def test_a_piece_that_cannot_be_held_is_rejected_alone(storage: Storage) -> None:
    await begin(storage)
    beyond = chunk(2**70)

    assert await kinds(storage, stream(chunk(4)), stream(beyond)) == [DONE, REJECTED]

    assert await storage.read_chunks("r", 0) == [chunk(4)]


async def test_pieces_are_forgotten_with_their_request(storage: Storage) -> None:
    await begin(storage, chunk(4))

    await storage.commit([ForgetRequest("r", EXECUTOR)])

    assert await storage.get_workflow("r") is None
    assert await storage.read_chunks("r", -1) == []


async def test_pieces_stay_with_a_request_that_stays(storage: Storage) -> None:
    await begin(storage, chunk(4))
    await storage.commit([record(step("r"))])

    await storage.commit([ForgetRequest("r", EXECUTOR)])

    assert await storage.read_chunks("r", 0) == [chunk(4)]


@pytest.mark.parametrize("forgotten_at_us", [1000, 9000])
async def test_pieces_expire_with_the_answer(storage: Storage, forgotten_at_us: int) -> None:
    await begin(storage, chunk(4))
    answer = response(body=None, stream_end=4, forgotten_at_us=forgotten_at_us)
    await storage.commit([success("r", output=None, response=answer)])

    await storage.forget_expired(1000, abandoned_before_us=0, limit=9)

    assert await storage.read_chunks("r", -1) == []
    left = await storage.get_response("r")
    assert (left is None) == (forgotten_at_us == 1000)
    assert left is None or (left.is_tombstone and left.stream_end is None)


async def test_pieces_of_an_abandoned_request_are_forgotten(storage: Storage) -> None:
    await begin(storage, chunk(4))
    await storage.commit([ReleaseWorkflow("r", EXECUTOR)])

    await storage.forget_expired(1000, abandoned_before_us=500, limit=9)

    assert await storage.read_chunks("r", -1) == []
