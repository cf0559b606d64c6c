"""Keys from elsewhere than a header, and requests that are verified before a look-up."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import pytest
from support.asgi import Exchange, answer, exchange, http_scope, keyed, read_all
from support.executors import query

from asgi_durable import Durable, DurableError, DurableUsageError, IdempotencyPolicy
from asgi_durable.middleware.asgi import Scope

pytestmark = pytest.mark.anyio

SECRET = b"whsec"
EVENT = b'{"id": "evt_1", "paid": true}'
JSON = [("content-type", "application/json")]


class Hooks:
    """An application that takes events, and knows which it has worked on.

    Attributes:
        bodies: Of its calls.
        messages: How many messages of the last request it received.
    """

    def __init__(self, url: str, *, routes: dict[str, Any] | None = None, **policy) -> None:
        default = None if routes is not None else IdempotencyPolicy(**policy)
        self.durable = Durable(url, idempotency=default, idempotency_routes=routes)
        self._app = self.durable.wrap(self._serve)
        self.bodies: list[bytes] = []
        self.messages: list[dict[str, Any]] = []

    async def post(self, body: bytes = EVENT, scope: Scope | None = None, **more) -> Exchange:
        return await exchange(self._app, scope or http_scope("POST", "/", JSON), body, **more)

    async def _serve(self, _scope, receive, send) -> None:
        async def receive_and_note():
            self.messages.append(await receive())
            return self.messages[-1]

        self.messages.clear()
        self.bodies.append(await read_all(receive_and_note))
        await answer(send, f"event {len(self.bodies)}".encode(), status=202)


def code_of(result: Exchange) -> str:
    code: str = json.loads(result.body)["code"]
    return code


def signed(body: bytes = EVENT, secret: bytes = SECRET, **more) -> Scope:
    signature = hmac.new(secret, body, hashlib.sha256).hexdigest()
    return http_scope("POST", "/", [*JSON, ("x-signature", signature)], **more)


def has_signature(scope: Scope, body: bytes) -> bool:
    sent = dict(scope["headers"]).get(b"x-signature", b"")
    return hmac.compare_digest(
        sent, hmac.new(SECRET, body, hashlib.sha256).hexdigest().encode("ascii")
    )


def id_of(_scope: Scope, body: bytes) -> str | None:
    return json.loads(body).get("id")


async def id_of_later(scope: Scope, body: bytes) -> str | None:
    await asyncio.sleep(0)
    return id_of(scope, body)


@pytest.mark.parametrize("key", ["/id", id_of, id_of_later], ids=["pointer", "def", "async def"])
async def test_the_key_may_be_in_the_body(url: str, key: Any) -> None:
    hooks = Hooks(url, key=key)
    async with hooks.durable:
        results = [await hooks.post(scope=keyed("ignored", headers=JSON)) for _ in range(2)]
        other = await hooks.post(b'{"id": "evt_2"}')
        misused = await hooks.post(b'{"id": "evt_1", "paid": false}')

    assert [(one.status, one.body) for one in results] == [(202, b"event 1")] * 2
    assert [one.headers("idempotent-replayed") for one in results] == [[], ["true"]]
    assert [one.headers("idempotency-key") for one in results] == [[], []]
    assert (other.body, hooks.bodies) == (b"event 2", [EVENT, b'{"id": "evt_2"}'])
    assert (misused.status, code_of(misused)) == (422, "KEY_REUSED")
    assert json.loads(misused.body)["idempotency_key"] == "evt_1"


@pytest.mark.parametrize(
    "body",
    [
        b'{"event": {"numbers": [0, 12345678901234567890]}}',
        gzip.compress(b'{"event": {"numbers": [0, 12345678901234567890]}, "cost": 1e400}'),
        json.dumps({"event": {"numbers": [0, 12345678901234567890]}, "a": "x" * 70_000}).encode(),
    ],
    ids=["plain", "packed", "long"],
)
async def test_a_number_in_a_packed_or_long_body_may_be_the_key(url: str, body: bytes) -> None:
    hooks = Hooks(url, key="/event/numbers/1", required=True)
    packed = [("content-encoding", "gzip")] if body[:1] == b"\x1f" else []
    async with hooks.durable:
        for _ in range(2):
            await hooks.post(body, http_scope("POST", "/", [*JSON, *packed]))
        text = await hooks.post(b'{"event": {"numbers": [0, "12345678901234567890"]}}')

    assert hooks.bodies == [body]
    assert code_of(text) == "KEY_REUSED"


@pytest.mark.parametrize(
    "value", ['""', '"é"', '"a\\nb"', "1.5", "true", "null", "[]", '"%s"' % ("x" * 256)]
)
async def test_a_member_that_is_no_key_is_refused(url: str, value: str) -> None:
    hooks = Hooks(url, key="/id")
    async with hooks.durable:
        refused = await hooks.post(b'{"id": %s}' % value.encode())

    assert (refused.status, code_of(refused), hooks.bodies) == (400, "KEY_MALFORMED", [])
    assert "/id" in json.loads(refused.body)["detail"]


async def test_a_member_that_is_there_twice_is_refused(url: str) -> None:
    hooks = Hooks(url, key="/id")
    async with hooks.durable:
        refused = await hooks.post(b'{"id": "a", "id": "b"}')

    assert (refused.status, code_of(refused), hooks.bodies) == (400, "KEY_MALFORMED", [])


NO_KEY = [b"{}", b"[1]", b"no JSON", b"", b'{"ID": "a"}', b"\xff"]


@pytest.mark.parametrize("body", NO_KEY)
async def test_a_request_without_the_member_passes_as_it_came(url: str, body: bytes) -> None:
    hooks = Hooks(url, key="/id")
    chunks = [body[:1], body[1:], b""]
    async with hooks.durable:
        results = [await hooks.post(chunks=chunks) for _ in range(2)]

    assert hooks.bodies == [body] * 2
    assert [message["body"] for message in hooks.messages] == chunks
    assert [one.headers("durable-id") for one in results] == [[], []]
    assert await query(url, "SELECT count(*) FROM asgi_durable_workflows") == [(0,)]


@pytest.mark.parametrize("body", NO_KEY)
async def test_a_member_may_be_needed(url: str, body: bytes) -> None:
    hooks = Hooks(url, key="/id", required=True, validate_key=lambda key: key != "evt_3")
    async with hooks.durable:
        refused = await hooks.post(body)
        invalid = await hooks.post(b'{"id": "evt_3"}')

    assert (refused.status, code_of(refused), hooks.bodies) == (400, "KEY_MISSING", [])
    assert "/id" in json.loads(refused.body)["detail"]
    assert code_of(invalid) == "KEY_MALFORMED"


LONG = json.dumps({"id": "evt_1", "a": "x" * 2000}).encode()


@pytest.mark.parametrize("chunks", [[LONG], [LONG[:1500], LONG[1500:]]])
async def test_a_long_body_whose_key_is_not_looked_for_passes_and_its_response_says_so(
    url: str, chunks: list[bytes]
) -> None:
    hooks, strict = [
        Hooks(url, key="/id", max_request_body=1024, required=required)
        for required in (False, True)
    ]
    async with hooks.durable, strict.durable:
        passed = await hooks.post(chunks=chunks)
        announced = await hooks.post(
            scope=http_scope("POST", "/", [*JSON, ("content-length", "9999")]), chunks=chunks
        )
        refused = await strict.post(chunks=chunks)

    assert passed.headers("idempotency-status") == ["ignored"]
    assert announced.headers("idempotency-status") == ["ignored"]
    assert hooks.bodies == [LONG, LONG]
    assert (refused.status, code_of(refused), strict.bodies) == (413, "BODY_TOO_LARGE", [])


@pytest.mark.parametrize("body", [gzip.compress(EVENT)[:-1], b"[" * 100_000], ids=["cut", "deep"])
async def test_a_body_that_cannot_be_read_is_not_silently_without_a_key(
    url: str, body: bytes
) -> None:
    hooks, strict = Hooks(url, key="/id"), Hooks(url, key="/id", required=True)
    packed = [("content-encoding", "gzip")] if body[:1] == b"\x1f" else []
    scope = http_scope("POST", "/", [*JSON, *packed])
    async with hooks.durable, strict.durable:
        passed = await hooks.post(body, dict(scope))
        refused = await strict.post(body, dict(scope))

    assert (passed.status, passed.headers("idempotency-status")) == (202, ["ignored"])
    assert (code_of(refused), strict.bodies) == ("KEY_MISSING", [])


async def test_a_client_that_leaves_before_its_key_is_there_is_not_served(url: str) -> None:
    hooks = Hooks(url, key="/id")

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message) -> None:
        raise AssertionError(message)

    async with hooks.durable:
        await hooks._app(http_scope("POST", "/", JSON), receive, send)

    assert hooks.bodies == []


async def test_the_key_may_be_in_the_path(url: str) -> None:
    policy = IdempotencyPolicy(key="{event_id}", required=True)
    hooks = Hooks(url, routes={"POST /hooks/{event_id}": policy, "/more/{event_id:path}": policy})
    async with hooks.durable:
        for path in ("/hooks/a", "/hooks/a", "/hooks/b", "/more/a/b", "/other"):
            await hooks.post(scope=http_scope("POST", path, JSON))
        malformed = await hooks.post(scope=http_scope("POST", "/hooks/é", raw_path=b"/hooks/%C3"))

    assert len(hooks.bodies) == 4
    assert (malformed.status, code_of(malformed)) == (400, "KEY_MALFORMED")


@pytest.mark.parametrize(
    "routes",
    [{}, {"POST /hooks/{id}": IdempotencyPolicy(key="{event_id}")}, {"/a": None}],
)
def test_a_parameter_that_no_route_has_is_refused(url: str, routes: dict[str, Any]) -> None:
    durable = Durable(
        url,
        idempotency=IdempotencyPolicy(key="Event-Id" if "POST /hooks/{id}" in routes else "{id}"),
        idempotency_routes=routes,
    )

    async def app(scope, receive, send) -> None:
        """Do nothing."""

    with pytest.raises(DurableUsageError, match="parameter of the path"):
        durable.wrap(app)


async def test_a_header_may_be_named_in_both_ways(url: str) -> None:
    for policy in ({"key": "X-Event"}, {"header_name": "X-Event"}):
        hooks = Hooks(f"{url}.{len(policy)}{next(iter(policy))}", **policy)
        async with hooks.durable:
            for event in ("a", '"a"'):
                scope = http_scope("POST", "/", [*JSON, ("x-event", event)])
                last = await hooks.post(scope=scope)

        assert (last.headers("idempotent-replayed"), last.headers("x-event")) == (["true"], ['"a"'])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"key": "/id", "header_name": "X-Key"}, "header_name"),
        ({"key": "Idempotency-Key", "header_name": "Idempotency-Key"}, "header_name"),
        ({"key": "/id", "oversize": "hash"}, "key='/id'.*oversize"),
        ({"key": id_of, "oversize": "hash"}, "oversize"),
        ({"verify": has_signature, "oversize": "hash"}, "verify=.*oversize"),
        ({"key": ""}, "header's name"),
        ({"key": "an id"}, "header's name"),
        ({"key": "{a}/{b}"}, "header's name"),
        ({"key": "/a~2"}, "header's name"),
        ({"key": 5}, "header's name"),
        ({"header_name": "a b"}, "not the name of a header"),
    ],
)
def test_a_place_that_cannot_be_meant_is_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(DurableUsageError, match=match):
        IdempotencyPolicy(**options)


async def check_later(scope: Scope, body: bytes) -> bool:
    await asyncio.sleep(0)
    return has_signature(scope, body)


@pytest.mark.parametrize("verify", [has_signature, check_later])
@pytest.mark.parametrize("key", ["/id", "Idempotency-Key"])
async def test_a_replay_is_verified_before_it_is_sent(
    url: str, verify: Callable[[Scope, bytes], Any], key: str
) -> None:
    hooks = Hooks(url, key=key, verify=verify)

    def request(secret: bytes) -> Scope:
        scope = signed(secret=secret)
        return {**scope, "headers": [*scope["headers"], (b"idempotency-key", b"k")]}

    async with hooks.durable:
        forged = await hooks.post(scope=request(b"guess"))
        results = [await hooks.post(scope=request(SECRET)) for _ in range(2)]
        forged_again = await hooks.post(scope=request(b"guess"))

    assert [(one.status, one.body) for one in results] == [(202, b"event 1")] * 2
    assert hooks.bodies == [EVENT]
    # Nothing tells a key that is taken from one that is free.
    assert (forged.status, code_of(forged)) == (403, "REQUEST_NOT_VERIFIED")
    names = [[name for name, _ in one.sent[0]["headers"]] for one in (forged, forged_again)]
    assert names[0] == names[1]
    members = [json.loads(one.body) for one in (forged, forged_again)]
    assert members[0] | {"request_id": ""} == members[1] | {"request_id": ""}
    assert not {"instance", "idempotency_key", "run"} & set(members[0])
    assert forged.headers("durable-id") == []


async def test_a_request_that_is_not_verified_claims_nothing(url: str) -> None:
    hooks = Hooks(url, key="/id", verify=has_signature)
    async with hooks.durable:
        await hooks.post(scope=signed(secret=b"guess"))

        assert await query(url, "SELECT count(*) FROM asgi_durable_workflows") == [(0,)]


async def test_a_request_without_a_key_is_left_to_the_app_to_verify(url: str) -> None:
    hooks = Hooks(url, verify=has_signature)
    async with hooks.durable:
        passed = await hooks.post()

    assert (passed.status, hooks.bodies) == (202, [EVENT])


async def test_a_body_that_is_too_long_is_refused_before_it_is_verified(url: str) -> None:
    hooks = Hooks(url, verify=has_signature, max_request_body=10)
    async with hooks.durable:
        refused = await hooks.post(scope=keyed())

    assert (refused.status, code_of(refused)) == (413, "BODY_TOO_LARGE")


def raising(error: Exception) -> Callable[[Scope, bytes], bool]:
    def verify(_scope: Scope, _body: bytes) -> bool:
        raise error

    return verify


@pytest.mark.parametrize(
    ("verify", "status", "code"),
    [
        (lambda *_: False, 403, "REQUEST_NOT_VERIFIED"),
        (raising(DurableError("Go away", code="FORGED", status_code=401)), 401, "FORGED"),
        (raising(LookupError("no secret")), 500, "POLICY_FAILED"),
        (lambda *_: "yes", 500, "POLICY_FAILED"),
        (lambda *_: 0, 500, "POLICY_FAILED"),
        (lambda *_: has_signature, 500, "POLICY_FAILED"),
    ],
)
async def test_the_error_of_verify_is_the_response(
    url: str, verify: Callable[[Scope, bytes], Any], status: int, code: str
) -> None:
    hooks = Hooks(url, key="/id", verify=verify)
    async with hooks.durable:
        refused = await hooks.post()

    assert (refused.status, code_of(refused), hooks.bodies) == (status, code, [])
    assert b"no secret" not in refused.body


@pytest.mark.parametrize("verdict", [True, None])
async def test_a_check_that_has_nothing_against_a_request_lets_it_pass(
    url: str, verdict: bool | None
) -> None:
    hooks = Hooks(url, key="/id", verify=lambda *_: verdict)
    async with hooks.durable:
        assert (await hooks.post()).status == 202


@pytest.mark.parametrize(
    ("key", "status", "code"),
    [
        (lambda *_: 5, 500, "POLICY_FAILED"),
        (lambda *_: "", 400, "KEY_MALFORMED"),
        (raising(LookupError("secret")), 500, "POLICY_FAILED"),
        (raising(DurableError("No", code="NO_KEY", status_code=409)), 409, "NO_KEY"),
    ],
)
async def test_a_function_that_finds_no_key_may_fail(
    url: str, key: Any, status: int, code: str
) -> None:
    hooks = Hooks(url, key=key)
    async with hooks.durable:
        refused = await hooks.post()

    assert (refused.status, code_of(refused), hooks.bodies) == (status, code, [])


async def test_the_status_of_a_refusal_may_be_another(url: str) -> None:
    hooks = Hooks(url, key="/id", verify=lambda *_: False, statuses={"REQUEST_NOT_VERIFIED": 401})
    async with hooks.durable:
        assert (await hooks.post()).status == 401
