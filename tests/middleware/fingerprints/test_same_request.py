"""Changes that make another request, and other spellings of the same request."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest
from support.asgi import http_scope

from asgi_durable.middleware.asgi import Scope
from asgi_durable.middleware.fingerprints.fingerprint import request_fingerprint
from asgi_durable.middleware.fingerprints.former_fingerprint import former_fingerprint
from asgi_durable.middleware.fingerprints.json_members import JsonMembers, JsonPointer

JSON = "application/json"
ORDER = b'{"item": "book", "price": 1.50}'
REORDERED = b'{"price":1.5,"item":"book"}'


def fingerprint(body: bytes, media_type: str = JSON, **more: Any) -> str:
    return request_fingerprint(scope_of(media_type, **more), body)


def scope_of(
    media_type: str = JSON, encoding: str | None = None, path: str = "/orders", **more: Any
) -> Scope:
    headers = [("content-type", media_type)]
    if encoding is not None:
        headers.append(("content-encoding", encoding))
    return http_scope("POST", path, headers, **more)


def packed(body: bytes, mtime: int = 0) -> bytes:
    return gzip.compress(body, mtime=mtime)


def raw_deflated(body: bytes) -> bytes:
    packing = zlib.compressobj(wbits=-15)
    return packing.compress(body) + packing.flush()


def form_data(boundary: str, *parts: tuple[str, str]) -> bytes:
    lines: list[str] = []
    for name, value in parts:
        lines += [f"--{boundary}", f'Content-Disposition: form-data; name="{name}"', "", value]
    return "\r\n".join([*lines, f"--{boundary}--", ""]).encode()


@pytest.mark.parametrize(
    "media_type",
    [
        "Application/JSON",
        " application/json ;charset=utf-8",
        'application/json; Charset="UTF-8"',
        "application/json;",
    ],
)
def test_a_media_type_is_the_same_in_another_spelling(media_type: str) -> None:
    assert fingerprint(REORDERED, media_type) == fingerprint(ORDER)


@pytest.mark.parametrize(
    "media_type",
    [
        "application/json; charset=utf-16",
        "application/json; profile=a",
        "application/json; charset=utf-8; charset=utf-8",
        "application/problem+json",
        "text/plain",
        "json",
        "",
    ],
)
def test_another_media_type_is_another_request(media_type: str) -> None:
    assert fingerprint(ORDER, media_type) != fingerprint(ORDER)


def test_the_order_of_parameters_makes_no_other_media_type() -> None:
    one, other = "text/plain; a=1; Charset=UTF-8", 'text/plain;charset=utf-8;A="1"'

    assert fingerprint(b"x", one) == fingerprint(b"x", other)
    assert fingerprint(b"x", one) != fingerprint(b"x", "text/plain; a=1")
    assert fingerprint(b"x", one) != fingerprint(b"x", "text/plain; a=2; charset=utf-8")


def test_a_long_json_body_is_compared_by_its_values() -> None:
    items = [{"name": f"item {number}", "price": number / 2} for number in range(5000)]
    one = json.dumps(items).encode()
    other = json.dumps([dict(reversed(item.items())) for item in items], indent=1).encode()

    assert len(one) > 64 * 1024
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) != fingerprint(one.replace(b"item 7", b"item 8", 1))


@pytest.mark.parametrize("number", [b"1e99999999999999999999", b"0e-99999999999999999999"])
def test_a_number_that_no_decimal_is_makes_no_error(number: bytes) -> None:
    assert fingerprint(number) != fingerprint(b" " + number)


PARTS = (("item", "book"), ("note", "a\r\n--b\r\n"))


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/mixed"])
def test_the_boundary_makes_no_other_multipart_request(kind: str) -> None:
    one = fingerprint(form_data("xYz", *PARTS), f"{kind}; boundary=xYz")
    other = fingerprint(form_data("1-2", *PARTS), f'{kind.title()}; boundary="1-2"')

    assert one == other
    changed = form_data("xYz", PARTS[0], ("note", "b"))
    assert fingerprint(changed, f"{kind}; boundary=xYz") != one


@pytest.mark.parametrize(
    "other",
    [
        form_data("c", *reversed(PARTS)),
        form_data("c", ("item", "book"), ("Note", "a\r\n--b\r\n")),
        form_data("c", ("item", "book")),
        b"before\r\n" + form_data("c", *PARTS),
        form_data("c", *PARTS) + b"after",
        form_data("c", *PARTS).removesuffix(b"--\r\n"),
        form_data("c", *PARTS).replace(b"\r\n--c\r\n", b"\r\n--c \r\n", 1),
        b"--c--",
        b"",
    ],
)
def test_other_parts_make_another_request(other: bytes) -> None:
    kind = "multipart/form-data; boundary="
    whole = form_data("other", *PARTS)

    assert fingerprint(other, kind + "c") != fingerprint(whole, kind + "other")


def test_a_multipart_body_that_is_read_in_two_ways_is_compared_as_it_is() -> None:
    kind = "multipart/form-data; boundary="
    one, other = form_data("b", ("note", "a--b")), form_data("c", ("note", "a--b"))

    assert fingerprint(one, kind + "b") != fingerprint(other, kind + "c")
    assert fingerprint(one, kind + "b") == fingerprint(one, kind + "b")


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (b"a=x+y&b=%7e%C3%A9", b"a=x%20y&b=~%c3%a9", True),
        (b"a=1&b=2", b"b=2&a=1", False),
        (b"a=1%26b=2", b"a=1&b=2", False),
        (b"a=1%2B1", b"a=1+1", False),
        (b"a=1%3D", b"a=1%253D", False),
        (b"a=%%32%35", b"a=%25", False),
        (b"a", b"a=", False),
    ],
)
def test_a_form_is_compared_without_the_spelling_of_its_escapes(
    one: bytes, other: bytes, is_same: bool
) -> None:
    kind = "application/x-www-form-urlencoded"

    assert (fingerprint(one, kind) == fingerprint(other, f"{kind}; charset=UTF-8")) is is_same


@pytest.mark.parametrize("media_type", [JSON, "text/plain"])
def test_a_packed_body_is_compared_by_its_content(media_type: str) -> None:
    one = fingerprint(packed(ORDER, 1), media_type, encoding="gzip")

    assert one == fingerprint(packed(ORDER, 2), media_type, encoding=" X-GZIP")
    assert one != fingerprint(packed(REORDERED + b" 1"), media_type, encoding="gzip")
    assert one != fingerprint(ORDER, media_type)
    deflated = fingerprint(zlib.compress(ORDER, 1), media_type, encoding="deflate")
    assert deflated == fingerprint(raw_deflated(ORDER), media_type, encoding="Deflate")


def test_json_in_a_packed_body_is_compared_by_its_values() -> None:
    one = fingerprint(packed(ORDER), encoding="gzip")

    assert one == fingerprint(packed(REORDERED), encoding="gzip")
    assert one != fingerprint(packed(b"{}"), encoding="gzip")


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (packed(b"x" * 5_000_000), "gzip"),
        (packed(b"x") + packed(b"y"), "gzip"),
        (packed(b"x") + b"y", "gzip"),
        (packed(b"xyz")[:-1], "gzip"),
        (b"x", "gzip"),
        (packed(b"x"), "gzip, gzip"),
        (packed(b"x"), "br"),
    ],
)
def test_what_cannot_be_unpacked_is_compared_as_it_is(body: bytes, encoding: str) -> None:
    # The time is in the head of it.
    other = body[:4] + b"\1" + body[5:]

    assert fingerprint(body, encoding=encoding) == fingerprint(body, encoding=encoding)
    assert fingerprint(body, encoding=encoding) != fingerprint(other, encoding=encoding)


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (b"/s", b"/%73", True),
        (b"/%C3%a9%7E", b"/%c3%A9~", True),
        (b"/s", b"/s?", True),
        (b"/a%2Fb", b"/a/b", False),
        (b"/a%2fb", b"/a%2Fb", True),
        (b"/a%%32F", b"/a%2F", False),
        (b"/s", b"/s/", False),
        (b"/s", b"//s", False),
        (b"/s%3F", b"/s", False),
    ],
)
def test_a_path_is_compared_as_a_router_sees_it(one: bytes, other: bytes, is_same: bool) -> None:
    prints = [fingerprint(ORDER, raw_path=path) for path in (one, other)]

    assert (prints[0] == prints[1]) is is_same


def test_a_path_is_the_same_whether_the_server_gives_it_raw_or_not() -> None:
    raw = fingerprint(ORDER, path="/é a+b", raw_path=b"/%C3%A9%20a+b")

    assert raw == fingerprint(ORDER, path="/é a+b", raw_path=None)


def test_slashes_make_no_other_request_where_one_handler_serves_both() -> None:
    prints = {
        request_fingerprint(scope_of(raw_path=path), ORDER, merges_slashes=True)
        for path in (b"/s", b"/s/", b"//s", b"/%73?")
    }
    assert len(prints) == 1


@pytest.mark.parametrize(("one", "is_same"), [(b"a=%7e", True), (b"a=%26", False)])
def test_the_escapes_of_a_query_make_no_other_request(one: bytes, is_same: bool) -> None:
    prints = [fingerprint(ORDER, query_string=query) for query in (one, b"a=~")]

    assert (prints[0] == prints[1]) is is_same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'{"cart": 1}', b'{"cart": 2}'),
        (b'{"order": 1, "order": 2}', b'{"order": 3, "order": 2}'),
        (b'{"order": 1, "a": 1, "a": 2}', b'{"order": 1, "a": 2, "a": 2}'),
        (b'{"order": 1}', b'{"order": 1.0000000000000000001}'),
        (b'{"order": null}', b"{}"),
        (b'{"order": 1}', b"[1]"),
        (b"no JSON", b"no  JSON"),
        (packed(b'{"cart": 1}'), packed(b'{"cart": 2}')),
    ],
)
def test_two_orders_are_not_one_request_because_a_pointer_finds_nothing(
    one: bytes, other: bytes
) -> None:
    encoding = "gzip" if one[:1] == b"\x1f" else None
    scope, members = scope_of(encoding=encoding), JsonMembers(["/order"])

    assert request_fingerprint(scope, one, members) != request_fingerprint(scope, other, members)


def test_members_that_may_change_are_left_out_of_a_packed_body_too() -> None:
    scope, members = scope_of(encoding="gzip"), JsonMembers(["/order"])
    one, other = packed(b'{"order": 1, "at": 1}'), packed(b'{"order": 1, "at": 2}')

    assert request_fingerprint(scope, one, members) == request_fingerprint(scope, other, members)


# As version 1 has made them; the first is of a body whose members are in order.
FORMER: dict[str, tuple[Scope, bytes, list[str] | None, str]] = {
    "json": (
        http_scope("POST", "/a", [("content-type", "application/json; charset=utf-8")]),
        b'{"b": 1.50, "a": [null]}',
        None,
        "74b0702e2e748e5206e8d5de2ea88bde628b3ebc0a9d6542ddb13daacaf921ae",
    ),
    "long json": (
        http_scope("POST", "/a", [("content-type", JSON)]),
        b'[ 1, "' + b"x" * 70_000 + b'"]',
        None,
        "a5f76ebbc5294b56de9f044e8172f5f5d39c22fca3fb2c080b501f46ce8f4336",
    ),
    "text": (
        http_scope(
            "PUT", "/a", [("content-type", "text/plain")], raw_path=b"/%61", query_string=b"b=1"
        ),
        b"x",
        None,
        "4450bda41ba270ea0615d11e863ec10cdd0e7660f623e314b58476fcae314c6b",
    ),
    "packed": (
        http_scope("POST", "/a", [("content-type", JSON), ("content-encoding", "gzip")]),
        b'{"b": 1, "a": 2}',
        None,
        "02dc9f92dfc6eeef2da3dc9b7b788b2e32c9f96bcb57e67bbc999fa31da01e48",
    ),
    "members": (
        http_scope("POST", "/a", [("content-type", JSON)]),
        b'{"b": {"c": 1}, "a": 2}',
        ["/b/c", "/d"],
        "49c9a1d48bd126c2435534f43684d80fdfa1fb5795c12d05afe7a3f5ba0c5266",
    ),
    "nothing found": (
        http_scope("POST", "/a", [("content-type", JSON)]),
        b'{"b": {"c": 1}, "a": 2}',
        ["/d"],
        "29469509b423cbef8f44b9ab3df6ec54b47030d1ac60aa52fb3685558ad3c8a9",
    ),
}


@pytest.mark.parametrize("name", FORMER)
def test_fingerprints_of_the_former_version_are_made_as_it_did(name: str) -> None:
    scope, body, pointers, expected = FORMER[name]
    read = None if pointers is None else [JsonPointer(pointer) for pointer in pointers]

    assert former_fingerprint(scope, body, read) == f"v1:{expected}"
