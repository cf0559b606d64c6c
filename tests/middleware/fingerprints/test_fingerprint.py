"""Keys and fingerprints."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.asgi import http_scope, keyed

from asgi_durable import (
    DurableUsageError,
    IdempotencyPolicy,
    KeyMalformedError,
)
from asgi_durable.middleware.asgi import Scope
from asgi_durable.middleware.fingerprints.fingerprint import (
    request_fingerprint,
)
from asgi_durable.middleware.fingerprints.json_members import JsonMembers
from asgi_durable.middleware.keys.key_sources import idempotency_key


def key_of(value: str) -> bytes | None:
    return idempotency_key(keyed(value), b"idempotency-key")


@pytest.mark.parametrize(
    ("sent", "key"),
    [
        ("8e03978e-40d5", b"8e03978e-40d5"),
        ('"8e03978e-40d5"', b"8e03978e-40d5"),
        ('"8e03978e-40d5";a=1; b', b"8e03978e-40d5"),
        ("  padded\t", b"padded"),
        (
            '"with space, comma; and \\"quotes\\" and \\\\"',
            b'with space, comma; and "quotes" and \\',
        ),
        ("x" * 255, b"x" * 255),
        ("!#$%&'*+-.^_`|~:@/?()[]{}<>=", b"!#$%&'*+-.^_`|~:@/?()[]{}<>="),
    ],
)
def test_quoted_and_bare_keys_are_read(sent: str, key: bytes) -> None:
    assert key_of(sent) == key


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "   ",
        '""',
        '"unfinished',
        '"a" "b"',
        '"a"b',
        '"bad \\escape"',
        "a,b",
        "a b",
        "a;b",
        "back\\slash",
        "é",
        "a\x1bb",
        "a\x7f",
        "x" * 256,
        '"' + "x" * 256 + '"',
    ],
)
def test_a_key_that_is_not_legal_is_refused(sent: str) -> None:
    with pytest.raises(KeyMalformedError) as caught:
        key_of(sent)

    assert caught.value.status_code == 400


def test_two_lines_are_refused_even_if_they_are_equal() -> None:
    scope = http_scope("POST", headers=[("Idempotency-Key", "a"), ("idempotency-key", "a")])

    with pytest.raises(KeyMalformedError, match="more than once"):
        idempotency_key(scope, b"idempotency-key")


def test_a_request_without_the_header_has_no_key() -> None:
    assert idempotency_key(http_scope("POST"), b"idempotency-key") is None


@given(st.text(st.characters(max_codepoint=255), max_size=300))
def test_any_header_is_a_key_or_malformed(value: str) -> None:
    try:
        key = key_of(value)
    except KeyMalformedError:
        return
    assert key
    assert len(key) <= 255
    assert key.isascii()


def test_a_scope_without_a_raw_path_has_a_fingerprint() -> None:
    scope = http_scope("POST", "/a")
    del scope["raw_path"]
    scope["path"] = "/\udcff"

    assert request_fingerprint(scope, b"").startswith("v2:")


def test_the_fingerprint_is_over_all_that_a_retry_repeats() -> None:
    def fingerprint(body: bytes = b"{}", method: str = "POST", path: str = "/a", **more) -> str:
        return request_fingerprint(http_scope(method, path, **more), body)

    different = [
        fingerprint(),
        fingerprint(b"{ }"),
        fingerprint(method="PATCH"),
        fingerprint(path="/b"),
        fingerprint(path="/b/c"),
        fingerprint(raw_path=b"/b%2Fc"),
        fingerprint(query_string=b"a=1"),
        fingerprint(headers=[("content-type", "application/json")]),
        fingerprint(headers=[("content-encoding", "gzip")]),
    ]
    assert len(set(different)) == len(different)
    assert fingerprint(headers=[("user-agent", "x"), ("traceparent", "y")]) == fingerprint()


JSON = [("content-type", "application/json; charset=utf-8")]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'{"a": 1, "b": [2, {"d": 3, "c": null}]}', b'{"b":[2,{"c":null,"d":3}],"a":1}'),
        (b' "\\u00e9" ', '"é"'.encode()),
        (b'"\\ud800"', b'"\\uD800"'),
        (b"[1.50, 1e2]", b"[1.5, 100.0]"),
    ],
)
def test_the_spelling_of_json_makes_no_other_request(one: bytes, other: bytes) -> None:
    scope = http_scope("POST", "/a", JSON)

    assert request_fingerprint(scope, one) == request_fingerprint(scope, other)
    plain = http_scope("POST", "/a", [("content-type", "text/plain")])
    assert request_fingerprint(plain, one) != request_fingerprint(plain, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"[1, 2]", b"[2, 1]"),
        (b"1", b"1.0"),
        (b"1", b"true"),
        (b"0", b"-0.0"),
        (b'{"a": 1}', b'{"a": 2, "a": 1}'),
        (b'{"a": 2, "a": 1}', b'{"a": 1, "a": 2}'),
        (b"0.1", b"0.1000000000000000055511151231257827"),
        (b"[" * 100_000, b" " + b"[" * 100_000),
        (b"no json", b" no json"),
        (b"\xff", b" \xff"),
        (b"9" * 5000, b" " + b"9" * 5000),
        (b'["%s"]' % (b"x" * 1_048_576), b'[ "%s"]' % (b"x" * 1_048_576)),
    ],
)
def test_requests_that_an_app_can_distinguish_are_different(one: bytes, other: bytes) -> None:
    scope = http_scope("POST", "/a", JSON)

    assert request_fingerprint(scope, one) != request_fingerprint(scope, other)


def test_json_that_is_packed_is_left_as_it_is() -> None:
    scope = http_scope("POST", "/a", [*JSON, ("content-encoding", "br")])

    assert request_fingerprint(scope, b"[1]") != request_fingerprint(scope, b"[ 1]")


POINTERS = ["/order/id", "/items/0/a~1b~0c", "/note"]
MEMBERS = JsonMembers(POINTERS)
ORDER = b'{"order": {"id": 1, "at": 2}, "items": [{"a/b~c": 3}], "note": null}'


def pointed(scope: Scope, body: bytes) -> str:
    return request_fingerprint(scope, body, MEMBERS)


@pytest.mark.parametrize(
    ("body", "is_same"),
    [
        (b'{"items": [{"a/b~c": 3, "d": 4}, 5], "note": null, "order": {"id": 1.0}}', False),
        (b'{"items": [{"a/b~c": 3, "d": 4}, 5], "note": null, "order": {"id": 1}}', True),
        (ORDER.replace(b'"at": 2', b'"at": 3'), True),
        (ORDER.replace(b'"id": 1', b'"id": 2'), False),
        (ORDER.replace(b": 3", b": 4"), False),
        (ORDER.replace(b', "note": null', b""), False),
        (b'{"order": [1]}', False),
        (b"not JSON", False),
    ],
)
def test_only_the_members_count_that_are_pointed_at(body: bytes, is_same: bool) -> None:
    scope = http_scope("POST", "/a", headers=JSON)
    elsewhere = http_scope("POST", "/b", headers=JSON)

    assert (pointed(scope, body) == pointed(scope, ORDER)) is is_same
    assert pointed(elsewhere, ORDER) != pointed(scope, ORDER)


def test_a_body_that_is_not_json_counts_as_a_whole() -> None:
    scope = http_scope("POST", "/a")

    assert pointed(scope, ORDER) != pointed(scope, ORDER + b" ")


@pytest.mark.parametrize("pointers", ["/id", ["id"], ["/a", "b/c"], ["/a~b"], []])
def test_what_is_no_pointer_is_refused(pointers: Any) -> None:
    with pytest.raises(DurableUsageError, match="JSON pointers"):
        IdempotencyPolicy(fingerprint=pointers)
