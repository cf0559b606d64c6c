"""Any messages of clients and apps: no error of our own making, and the same response again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.asgi import exchange, http_scope, read_all

from asgi_durable import Durable
from asgi_durable.middleware.policies.policy import IdempotencyPolicy

VALUES = st.binary(max_size=300).filter(lambda value: not set(value) & set(b"\r\n\0"))
NAMES = st.sampled_from(
    [
        b"idempotency-key",
        b"authorization",
        b"content-type",
        b"content-encoding",
        b"content-length",
        b"cookie",
        b"prefer",
        b"x-request-id",
        b"x-other",
    ]
)
KEYS = st.text('abc"\\,; \t\u00e9', min_size=0, max_size=8).map(lambda key: key.encode("latin-1"))
REQUEST_HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=6)
CHUNKS = st.lists(st.binary(max_size=40), min_size=1, max_size=4)
ANSWER_HEADERS = st.lists(st.tuples(st.sampled_from([b"Link", b"Set-Cookie", b"ETag"]), VALUES))
STATUSES = st.sampled_from([200, 201, 204, 302, 307, 400, 401, 404, 422, 429])
ANSWERS = st.tuples(STATUSES, ANSWER_HEADERS, CHUNKS)
MEDIA_TYPES = st.sampled_from([b"application/json", b"text/event-stream", b"text/plain"])


def test_any_request_gets_a_response_and_its_retry_the_same(tmp_path: Path) -> None:
    policy = IdempotencyPolicy(max_request_body=100, max_response_body=100, session_cookie="sid")
    durable = Durable(f"sqlite:///{tmp_path / 'any.db'}", idempotency=policy)
    answers: list[tuple[int, list[tuple[bytes, bytes]], list[bytes]]] = []
    numbers = iter(range(10**9))

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        await read_all(receive)
        status, headers, chunks = answers[-1]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body"})

    app = durable.wrap(serve)

    async def send_twice(
        key: bytes, headers: list[tuple[bytes, bytes]], chunks: list[bytes]
    ) -> Any:
        # A principal of its own for each example: no other example's key is reused.
        own = [(b"authorization", b"%d" % next(numbers)), *headers, (b"idempotency-key", key)]
        scope = http_scope("POST", "/") | {"headers": own}
        return [await exchange(app, dict(scope), chunks=chunks) for _ in range(2)]

    with asyncio.Runner() as runner:
        runner.run(durable.__aenter__())

        @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150)
        @given(KEYS, REQUEST_HEADERS, CHUNKS, ANSWERS, MEDIA_TYPES)
        def check(
            key: bytes,
            headers: list[tuple[bytes, bytes]],
            chunks: list[bytes],
            answer: tuple[int, list[tuple[bytes, bytes]], list[bytes]],
            media_type: bytes,
        ) -> None:
            status, answer_headers, answer_chunks = answer
            answers.append(
                (status, [*answer_headers, (b"content-type", media_type)], answer_chunks)
            )
            first, retry = runner.run(send_twice(key, headers, chunks))

            assert first.is_complete
            assert retry.is_complete
            assert first.status < 500
            assert retry.status < 500
            if retry.headers("idempotent-replayed") and retry.status != 410:
                assert (first.status, first.body) == (retry.status, retry.body)
                assert first.headers("link") == retry.headers("link")

        try:
            check()
        finally:
            runner.run(durable.__aexit__(None, None, None))
