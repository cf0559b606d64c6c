"""With encryption keys no part of values, requests and responses can be read in the database."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from support.asgi import Exchange, answer, exchange, http_scope, keyed, read_all
from support.executors import beats, query, row_of, until
from support.interruption import Gate
from support.lifespan import lifespan
from support.processes.scripts import Script, event, without_ids

from asgi_durable import (
    DecodeError,
    Durable,
    FinalError,
    IdempotencyPolicy,
    Payloads,
    PayloadTooLargeError,
    RetryPolicy,
)
from asgi_durable.middleware.fingerprints.fingerprint import request_fingerprint
from asgi_durable.middleware.fingerprints.former_fingerprint import former_fingerprint
from asgi_durable.storage import tables

pytestmark = pytest.mark.anyio

OLD, NEW, FOREIGN = (bytes([number]) * 31 + b"k" for number in (1, 2, 3))
ENCRYPTED = Payloads(encryption_keys=[OLD])
ROTATED = Payloads(encryption_keys=[NEW, OLD], compress_from=50)
WITHOUT_KEY = (Payloads(), Payloads(encryption_keys=[FOREIGN]))
# Each kind of record has its own secret.
SECRETS = {
    name: f"secret-{name}-{name.encode().hex()}"
    for name in (
        "argument", "step", "error", "transaction", "child", "background", "output", "failure",
        "body", "query", "header", "answer", "chunk",
    )
}  # fmt: skip
POLICY = IdempotencyPolicy(recover="server", stream="record", stream_after=0.0, max_wait=5.0)
HEADERS = [("X-Secret", SECRETS["header"])]
BODY = json.dumps({"card": SECRETS["body"]}).encode()


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


class Process:
    """A process with workflows and an app that make every kind of record.

    Attributes:
        steps: The number of calls of steps and transactions in this process.
        gate: The gate where workflows and requests wait to be interrupted.
    """

    def __init__(self, url: str, payloads: Payloads, folder: Path | None = None) -> None:
        application = f"sqlite:///{folder}/application.db" if folder is not None else None
        durable = self.durable = Durable(
            url,
            application_url=application,
            payloads=payloads,
            idempotency=POLICY,
            drain_timeout=0.0,
        )
        self.url = url
        self.steps = 0
        self.gate = Gate()
        self.app = durable.wrap(self._serve)

        @durable.step(name="step")
        async def step(value: str) -> str:
            self.steps += 1
            return step_of(value)

        @durable.step(name="failing", retry=RetryPolicy(max_attempts=1))
        async def failing() -> None:
            self.steps += 1
            raise LookupError(SECRETS["error"])

        @durable.transaction(name="transaction")
        async def transaction() -> str:
            self.steps += 1
            await durable.session.execute(sa.text("SELECT 1"))
            return SECRETS["transaction"]

        @durable.workflow(name="child")
        async def child(value: str) -> str:
            return value

        @durable.workflow(name="work")
        async def work(value: str) -> list[str]:
            results = [await step(value), await transaction(), await child(SECRETS["child"])]
            try:
                await failing()
            except LookupError as error:
                results.append(str(error))
            await durable.background(child, SECRETS["background"])
            return [*results, SECRETS["output"]]

        @durable.workflow(name="waiting")
        async def waiting(value: str) -> str:
            result = await step(value)
            await child(SECRETS["child"])
            await durable.background(child, SECRETS["background"])
            await step(value)
            await self.gate.wait()
            return result

        @durable.workflow(name="broken")
        async def broken() -> None:
            raise FinalError(SECRETS["failure"])

        self.step, self.work, self.waiting, self.broken = step, work, waiting, broken

    async def _serve(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        body = (await read_all(receive)).decode()
        if scope["path"] == "/waits":
            await self.step(body)
            await self.gate.wait()
        if scope["path"] == "/stream":
            start = {"status": 200, "headers": [(b"content-type", b"text/event-stream")]}
            await send({"type": "http.response.start", **start})
            for number in range(3):
                data = event(f"{SECRETS['chunk']} {number}")
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            seen = (body, scope["query_string"].decode(), dict(scope["headers"])[b"x-secret"])
            headers = [(b"x-answer", SECRETS["answer"].encode())]
            await answer(send, f"{SECRETS['answer']} {seen}".encode(), status=201, headers=headers)

    async def post(self, path: str, body: bytes = BODY) -> Exchange:
        return await exchange(self.app, scope_of(path), body)

    @asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        async with lifespan(self.app):
            yield


def step_of(value: str) -> str:
    return f"{SECRETS['step']} {len(value)}"


def scope_of(path: str) -> dict[str, object]:
    return keyed(path, path, HEADERS, query_string=f"q={SECRETS['query']}".encode())


async def do_all(process: Process) -> dict[str, Exchange]:
    """Let a process make every kind of record; it stops during a workflow and a request."""
    durable = process.durable
    async with process.living():
        await durable.options(workflow_id="work").run_workflow(process.work, SECRETS["argument"])
        with pytest.raises(FinalError):
            await durable.options(workflow_id="broken").run_workflow(process.broken)
        await durable.options(workflow_id="waiting").start_workflow(
            process.waiting, SECRETS["argument"]
        )
        answers = {path: await process.post(path) for path in ("/order", "/stream")}
        await process.gate.reached.wait()
        process.gate.reached.clear()
        interrupted = asyncio.create_task(process.post("/waits"))
        await process.gate.reached.wait()
        await is_recorded(process.url, steps=4)
    assert (await interrupted).status == 503
    return answers


async def is_recorded(url: str, *, steps: int) -> None:
    async def are_there() -> bool:
        sql = "SELECT count(*) FROM asgi_durable_steps WHERE name = 'step'"
        return await query(url, sql) == [(steps,)]

    await until(are_there)


async def stored(url: str, folder: Path) -> bytes:
    """Return the content of the databases, column by column, and the bytes of SQLite files."""
    data = await asyncio.to_thread(
        lambda: b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())
    )
    for table in tables.metadata.sorted_tables:
        for row in await query(url, f"SELECT * FROM {table.name}"):
            data += b"\n".join(v if isinstance(v, bytes) else str(v).encode() for v in row)
    return data


def found_in(data: bytes) -> set[str]:
    """Return the secrets that some bytes show, plain or as base64."""
    return {name for name, text in SECRETS.items() if any(form in data for form in forms_of(text))}


def forms_of(text: str) -> Iterable[bytes]:
    yield text.encode()
    for shift in range(3):
        # The characters that do not depend on the bytes before and behind.
        yield base64.b64encode(b" " * shift + text.encode())[4:-4]


async def test_without_keys_all_of_it_can_be_read(url: str, tmp_path: Path) -> None:
    await do_all(Process(url, Payloads(), tmp_path))

    # The log alone does not show a request's digest.
    assert found_in(await stored(url, tmp_path)) == set(SECRETS)


async def test_nothing_can_be_read_without_the_key(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "asgi_durable")
    await do_all(Process(url, ENCRYPTED, tmp_path))
    data = await stored(url, tmp_path)
    records = await query(f"sqlite:///{tmp_path}/application.db", "SELECT * FROM "
                          "asgi_durable_transactions")  # fmt: skip
    fingerprints = await query(
        url, "SELECT fingerprint FROM asgi_durable_workflows WHERE fingerprint IS NOT NULL"
    )

    assert found_in(data) == set()
    assert len(records) == 1
    assert len(fingerprints) == 3
    assert all(text.startswith("k1:") for (text,) in fingerprints)
    for path in ("/order", "/stream", "/waits"):
        guess = request_fingerprint(scope_of(path), BODY).partition(":")[2].encode()
        assert guess not in data
    assert OLD[:16] not in data
    for form in (OLD.hex(), base64.b64encode(OLD).decode(), repr(OLD)[2:-1]):
        assert form not in caplog.text


@pytest.mark.parametrize("before", [Payloads(), ENCRYPTED], ids=["plain", "encrypted"])
async def test_with_a_new_key_everything_goes_on_and_is_answered_again(
    url: str, tmp_path: Path, before: Payloads
) -> None:
    first = await do_all(Process(url, before, tmp_path))
    process = Process(url, ROTATED, tmp_path)
    process.gate.open()
    async with process.living():
        durable = process.durable
        work = await durable.options(workflow_id="work").run_workflow(
            process.work, SECRETS["argument"]
        )
        with pytest.raises(FinalError, match=SECRETS["failure"]):
            await (await durable.retrieve_workflow("broken")).get_result()
        result = await (await durable.retrieve_workflow("waiting")).get_result(timeout=60)
        status = await (await durable.retrieve_workflow("waiting")).get_status()
        again = {path: await process.post(path) for path in first}
        other = await process.post("/order", b"{}")
        recovered = await until(lambda: answered(process, "/waits"))

    texts = [SECRETS[name] for name in ("transaction", "child", "error", "output")]
    assert work == [step_of(SECRETS["argument"]), *texts]
    assert result == work[0]
    assert status.input == {"value": SECRETS["argument"]}
    for path, exchanged in again.items():
        assert (exchanged.status, exchanged.body) == (first[path].status, first[path].body)
        assert exchanged.headers("x-answer") == first[path].headers("x-answer")
        assert exchanged.headers("durable-id") == first[path].headers("durable-id")
        assert exchanged.headers("idempotent-replayed") == ["true"]
    assert other.status == 422
    # It continued without its client, with all that its client had sent.
    assert (recovered.status, recovered.headers("idempotent-replayed")) == (201, ["true"])
    for name in ("body", "query", "header", "answer"):
        assert SECRETS[name].encode() in recovered.body
    assert process.steps == 0


async def answered(process: Process, path: str) -> Exchange | None:
    exchanged = await process.post(path)
    return exchanged if exchanged.status == 201 else None


@pytest.mark.parametrize("payloads", WITHOUT_KEY, ids=["no key", "another key"])
async def test_without_the_key_everything_waits_for_who_has_it(
    url: str, tmp_path: Path, payloads: Payloads, caplog: pytest.LogCaptureFixture
) -> None:
    first = await do_all(Process(url, ENCRYPTED, tmp_path))
    process = Process(url, payloads, tmp_path)
    process.gate.open()
    async with process.living():
        handle = await process.durable.retrieve_workflow("work")
        with pytest.raises(DecodeError, match="encryption_keys="):
            await handle.get_result()
        await until(lambda: "waiting (waiting) cannot continue in this process" in caplog.text)
        await until(lambda: "is left to its client" in caplog.text)
        await beats(process.durable, 2)
        refused = [await process.post(path) for path in ("/order", "/stream", "/waits")]
        page = f"/durable/requests/{first['/order'].headers('durable-id')[0]}"
        refused.append(await exchange(process.app, http_scope("GET", f"{page}/result")))
        shown = await exchange(process.app, http_scope("GET", page))
    state, error = await row_of(url, "waiting", "state, error")

    for exchanged in refused:
        problem = json.loads(exchanged.body)
        assert (exchanged.status, problem["code"]) == (503, "ENCRYPTION_KEY_MISSING")
        assert problem["retryable"] is True
        assert "encryption_keys" not in problem["detail"]
    assert shown.status == 303
    assert (state, error) == ("PENDING", None)
    assert process.steps == 0
    assert caplog.text.count("waiting (waiting) cannot continue in this process") == 1
    assert not found_in(caplog.text.encode())

    able = Process(url, ENCRYPTED, tmp_path)
    able.gate.open()
    async with able.living():
        waiting = await able.durable.retrieve_workflow("waiting")
        assert await waiting.get_result(timeout=60) == step_of(SECRETS["argument"])
        assert (await until(lambda: answered(able, "/waits"))).status == 201
        assert (await able.post("/stream")).body == first["/stream"].body


async def test_a_damaged_answer_is_told_and_never_sent(url: str) -> None:
    process = Process(url, ENCRYPTED)
    async with process.living():
        await process.post("/order")
        swapped = "headers = body, body = headers" if "sqlite" in url else "body = body || '\\x00'"
        await query(url, f"UPDATE asgi_durable_responses SET {swapped} RETURNING workflow_id")
        again = await process.post("/order")

    assert (again.status, json.loads(again.body)["code"]) == (500, "RESPONSE_DAMAGED")


async def test_a_damaged_chunk_breaks_the_answer_off(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    process = Process(url, ENCRYPTED)
    async with process.living():
        whole = await process.post("/stream")
        await query(
            url,
            "UPDATE asgi_durable_pieces SET data = (SELECT data FROM asgi_durable_pieces WHERE "
            "end_offset = 0) WHERE end_offset > 0 RETURNING workflow_id",
        )
        again = await process.post("/stream")

    assert whole.status == 200
    assert (again.status, json.loads(again.body)["code"]) == (500, "RESPONSE_DAMAGED")


async def test_an_encoded_answer_is_not_compressed_again(url: str) -> None:
    durable = Durable(url, payloads=Payloads(compress_from=10), idempotency=IdempotencyPolicy())
    body = b"x" * 1000

    async def serve(scope, receive, send) -> None:
        encoding = [(b"content-encoding", b"gzip")] if scope["path"] == "/encoded" else []
        await answer(send, body, headers=encoding)

    app = durable.wrap(serve)
    async with durable:
        for path in ("/encoded", "/plain"):
            await exchange(app, keyed(path, path))
            assert (await exchange(app, keyed(path, path))).body == body
    sizes = [
        size for (size,) in await query(url, "SELECT length(body) FROM asgi_durable_responses")
    ]

    assert max(sizes) == 1000
    assert min(sizes) < 100


@pytest.mark.parametrize("before", [Payloads(), ENCRYPTED], ids=["plain", "encrypted"])
async def test_the_retry_of_a_long_body_is_recognised_after_a_rotation(
    url: str, before: Payloads
) -> None:
    policy = IdempotencyPolicy(max_request_body=100, oversize="hash")
    results = []
    for payloads, body in ((before, b"x" * 700), (ROTATED, b"x" * 700), (ROTATED, b"y" * 700)):
        durable = Durable(url, payloads=payloads, idempotency=policy)

        async def serve(scope, receive, send) -> None:
            await answer(send, b"%d" % len(await read_all(receive)))

        async with durable:
            chunks = [body[:350], body[350:]]
            results.append(await exchange(durable.wrap(serve), keyed(), chunks=chunks))

    assert [result.status for result in results] == [200, 200, 422]
    assert results[1].body == results[0].body == b"700"
    assert results[1].headers("idempotent-replayed") == ["true"]


@pytest.mark.parametrize("before", [Payloads(), ENCRYPTED], ids=["plain", "encrypted"])
async def test_a_redirect_is_repeated_after_a_rotation(url: str, before: Payloads) -> None:
    async def serve(scope, receive, send) -> None:
        is_asked_again = scope["path"] == "/orders"
        headers = [(b"location", b"/orders/")] if is_asked_again else []
        await answer(send, status=307 if is_asked_again else 201, headers=headers)

    results = []
    for payloads in (before, ROTATED):
        durable = Durable(url, payloads=payloads)
        app = durable.wrap(serve)
        async with durable:
            results += [await exchange(app, keyed("k", path)) for path in ("/orders", "/orders/")]

    assert [result.status for result in results] == [307, 201, 307, 201]


async def test_a_request_that_an_earlier_version_has_claimed_is_answered(url: str) -> None:
    async def serve(scope, receive, send) -> None:
        await answer(send)

    durable = Durable(url, payloads=ENCRYPTED)
    app = durable.wrap(serve)
    async with durable:
        await exchange(app, keyed(), BODY)
        former = former_fingerprint(keyed(), BODY, None)
        await query(
            url,
            f"UPDATE asgi_durable_workflows SET fingerprint = '{former}' RETURNING workflow_id",
        )
        again = await exchange(app, keyed(), BODY)
        other = await exchange(app, keyed(), b"{}")

    assert (again.status, other.status) == (200, 422)


async def test_a_result_above_the_limit_fails_once_and_names_its_step(url: str) -> None:
    durable, calls = Durable(url, payloads=Payloads(max_size=10_000)), []

    @durable.step(name="large", retry=RetryPolicy(max_attempts=3, initial_interval=0.0))
    async def large(size: int) -> str:
        calls.append(size)
        return "x" * size

    @durable.workflow(name="work")
    async def work(size: int) -> str:
        return await large(size)

    @durable.workflow(name="all")
    async def everything(text: str) -> str:
        return text * 10

    async with durable:
        assert len(await work(9_996)) == 9_996
        with pytest.raises(PayloadTooLargeError, match=r"step 'large'.* 10001 bytes.* 10000 "):
            await work(9_997)
        with pytest.raises(PayloadTooLargeError, match="input of workflow 'all'"):
            await everything("x" * 20_000)
        with pytest.raises(PayloadTooLargeError, match="result of workflow 'all'"):
            await everything("x" * 5_000)

    assert calls == [9_996, 9_997]


async def begin_stream(durable: Durable, events: list[bytes]) -> None:
    """Let a process send a part of a stream, and stop."""
    app, first = durable.wrap(Script([*events, Gate()])), Exchange(b"")
    async with durable:
        call = asyncio.create_task(app(keyed(), first.receive, first.send))
        await until(lambda: b"".join(events) in without_ids(first.body))
    await asyncio.gather(call, return_exceptions=True)


@pytest.mark.parametrize("before", [Payloads(), ENCRYPTED], ids=["plain", "encrypted"])
async def test_an_interrupted_stream_goes_on_after_a_rotation(url: str, before: Payloads) -> None:
    events = [event("a"), event("b")]
    whole = Script(events)
    policy = IdempotencyPolicy(stream="record", stream_after=0.0)
    old = Durable(url, payloads=before, idempotency=policy, drain_timeout=0.0)
    await begin_stream(old, events[:1])
    new = Durable(url, payloads=ROTATED, idempotency=policy)
    async with new:
        second = await exchange(new.wrap(whole), keyed())
        replay = await exchange(new.wrap(whole), keyed())
    cuts = await query(url, "SELECT cut_to FROM asgi_durable_pieces WHERE cut_to IS NOT NULL")

    assert without_ids(second.body) == b"".join(events)
    assert replay.body == second.body
    assert whole.calls == 1
    # Chunks that were recorded with the old key were confirmed, and not replaced.
    assert cuts == [(-1,)]


async def test_a_stream_that_cannot_be_decrypted_is_not_replaced(url: str) -> None:
    policy = IdempotencyPolicy(stream="record", stream_after=0.0)
    all_events = [event(name) for name in "abc"]
    # Its fingerprint is of before the encryption, so only its chunks tell that a key is missing.
    for number, payloads in enumerate((Payloads(), ENCRYPTED), start=1):
        durable = Durable(url, payloads=payloads, idempotency=policy, drain_timeout=0.0)
        await begin_stream(durable, all_events[:number])
    pieces = "SELECT end_offset, data FROM asgi_durable_pieces ORDER BY end_offset"
    before = await query(url, pieces)
    durable = Durable(url, idempotency=policy)
    async with durable:
        refused = await exchange(durable.wrap(Script(all_events)), keyed())

    assert (refused.status, json.loads(refused.body)["code"]) == (503, "ENCRYPTION_KEY_MISSING")
    assert await query(url, pieces) == before


@pytest.mark.parametrize(("payloads", "is_encrypted"), [(Payloads(), False), (ENCRYPTED, True)])
async def test_bodies_are_spooled_as_the_settings_say(
    url: str, payloads: Payloads, is_encrypted: bool
) -> None:
    async with Durable(url, payloads=payloads) as durable:
        cipher = durable.engine.requests.spool.new_cipher()

    assert (cipher is not None) == is_encrypted
