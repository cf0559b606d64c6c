"""The sender of a key: principals, cookies, authorities, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
from support.asgi import keyed

from asgi_durable import DurableUsageError, IdempotencyPolicy, PrincipalUnavailableError
from asgi_durable.engine.requests.request_ids import RequestIds
from asgi_durable.middleware.keys.principal import ANONYMOUS, NO_API_KEYS, ApiKeys

DEFAULT = IdempotencyPolicy()
SESSION = IdempotencyPolicy(session_cookie="session")
SHARE = IdempotencyPolicy(anonymous="share")
BASIC = ("authorization", "Basic Z2F0ZTp3YXk=")
BEARER = ("authorization", "Bearer ada")


class User:
    def __init__(self, identity: Any, *, is_authenticated: bool = True) -> None:
        self.identity = identity
        self.is_authenticated = is_authenticated


class UserWithoutIdentity:
    is_authenticated = True


def principal(
    *headers: tuple[str, str],
    policy: IdempotencyPolicy = DEFAULT,
    api_keys: ApiKeys = NO_API_KEYS,
    **more: Any,
) -> bytes:
    return policy.senders.sender_of(keyed(headers=headers, **more), api_keys).principal


def by_cookie(*lines: str, policy: IdempotencyPolicy = SESSION) -> bytes:
    return principal(*(("cookie", line) for line in lines), policy=policy)


def key_scope(policy: IdempotencyPolicy | None = None, **headers: str) -> tuple[bytes, ...]:
    lines = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return (policy or IdempotencyPolicy()).senders.sender_of(keyed(headers=lines)).scope


def test_principals_do_not_meet() -> None:
    principals = [
        principal(),
        principal(BASIC),
        principal(BEARER),
        principal(("authorization", "Bearer bob")),
        principal(user=User("a")),
        principal(user=User("b")),
        by_cookie("session=a"),
        by_cookie("session=b"),
        principal(BEARER, ("cookie", "session=a"), policy=SESSION),
    ]

    assert len(set(principals)) == len(principals)
    assert all(b"ada" not in name and b"Z2F0" not in name for name in principals)


def test_somebody_who_is_not_authenticated_is_anonymous() -> None:
    assert principal(user=User("guest", is_authenticated=False)) == principal() == ANONYMOUS


def test_a_configured_principal_decides_alone() -> None:
    def tenant(scope) -> str | None:
        return scope.get("tenant")

    policy = IdempotencyPolicy(principal=tenant, session_cookie="session")
    credentials = [BASIC, ("cookie", "session=a")]

    assert principal(policy=policy, tenant="a") != principal(policy=policy, tenant="b")
    assert principal(*credentials, policy=policy, tenant="a", user=User("u")) == principal(
        policy=policy, tenant="a"
    )
    assert principal(*credentials, policy=policy, session={"id": 1}) == ANONYMOUS
    named = IdempotencyPolicy(principal=lambda _: "anonymous")
    assert principal(policy=named) != ANONYMOUS


def test_an_unknown_principal_is_nobody_elses_and_shows_nothing() -> None:
    def broken(scope) -> str:
        raise LookupError("token service is down")

    with pytest.raises(PrincipalUnavailableError, match="token service") as caught:
        principal(policy=IdempotencyPolicy(principal=broken))

    assert "token service" not in caught.value.detail


@pytest.mark.parametrize("user", [UserWithoutIdentity(), User(""), User(None), User(5), object()])
def test_a_user_without_a_name_is_nobody_elses(user: object) -> None:
    for policy in (IdempotencyPolicy(), SHARE):
        with pytest.raises(PrincipalUnavailableError):
            principal(user=user, policy=policy)


# Cookies


@pytest.mark.parametrize(
    ("ada", "bob"),
    [
        (["session=s-ada"], ["session=s-bob"]),
        (["session=gone; session=s-ada"], ["session=gone; session=s-bob"]),
        (["session=gone", "session=s-ada"], ["session=gone", "session=s-bob"]),
        (["session=s-ada; session=gone"], ["session=s-bob; session=gone"]),
        (["session=gone; session =s-ada"], ["session=gone; session =s-bob"]),
        (["session=gone; session\xa0=s-ada"], ["session=gone; session\xa0=s-bob"]),
        (["session=; session=s-ada"], ["session=; session=s-bob"]),
        (["session-0=same; session-1=s-ada"], ["session-0=same; session-1=s-bob"]),
        (["session-1=same; session-0=s-ada"], ["session-1=same; session-0=s-bob"]),
        (["session.0=same; session.1=s-ada"], ["session.0=same; session.1=s-bob"]),
        (["session_0=same; session_1=s-ada"], ["session_0=same; session_1=s-bob"]),
        (["session=x; session-0=y"], ["session-0=x; session=y"]),
        (["session=a; session=b"], ["session=b; session=a"]),
    ],
)
def test_all_cookies_of_a_session_belong_to_its_principal(ada: list[str], bob: list[str]) -> None:
    assert len({by_cookie(*ada), by_cookie(*bob), by_cookie("session=gone"), ANONYMOUS}) == 4


def test_cookies_beside_that_of_the_session_make_no_difference() -> None:
    assert by_cookie("a=1; session=x; csrf=2") == by_cookie("csrf=3", "session=x")
    assert by_cookie("session=x; sessions=y; xsession=z; session-a=1") == by_cookie("session=x")


@pytest.mark.parametrize("cookie", ["session=", "session", "session-0=", 'a=1; session=""'])
def test_an_empty_cookie_of_a_session_makes_nobody_anonymous(cookie: str) -> None:
    for policy in (SESSION, IdempotencyPolicy(session_cookie="session", anonymous="share")):
        assert by_cookie(cookie, policy=policy) != ANONYMOUS


def test_a_shared_credential_does_not_hide_the_session() -> None:
    def of(cookie: str, *lines: tuple[str, str]) -> bytes:
        return principal(*lines, ("cookie", cookie), policy=SESSION)

    for line in (BASIC, BEARER):
        assert of("session=ada", line) != of("session=bob", line)
        assert of("session=ada", line) != of("session=ada")
    assert of("session=ada", BASIC) != of("session=ada", BEARER)


# Refusals


API_KEYS = ApiKeys.at(
    [("header", "X-API-Key"), ("header", "Authorization"), ("query", "token"), ("cookie", "key")]
)


@pytest.mark.parametrize(
    ("headers", "more"),
    [
        ([("cookie", "any=1")], {}),
        ([("cookie", "session=s-ada")], {}),
        ([("cookie", "any=1")], {"user": User("guest", is_authenticated=False)}),
        ([BASIC, ("cookie", "any=1")], {}),
        ([("authorization", ""), ("cookie", "any=1")], {}),
        ([("authorization", "Bearer"), ("cookie", "any=1")], {}),
        ([], {"session": {"user_id": 1}}),
        ([BASIC], {"session": {"user_id": 1}}),
        ([("x-api-key", "k")], {}),
        ([BASIC, ("X-Api-Key", "k")], {}),
        ([], {"query_string": b"a=1&token=k"}),
        ([], {"query_string": b"to%6Ben="}),
    ],
)
def test_a_sender_that_only_ignored_headers_identify_is_refused(headers, more) -> None:
    with pytest.raises(PrincipalUnavailableError) as caught:
        principal(*headers, api_keys=API_KEYS, **more)

    for setting in ("session_cookie=", "principal=", 'anonymous="share"'):
        assert setting in caught.value.detail
    is_basic = BASIC in headers
    shared = principal(*headers, api_keys=API_KEYS, policy=SHARE, **more)
    assert shared == (principal(BASIC) if is_basic else ANONYMOUS)


def test_without_the_cookie_of_the_session_other_cookies_are_refused() -> None:
    with pytest.raises(PrincipalUnavailableError):
        by_cookie("csrf=1")
    assert by_cookie() == ANONYMOUS


class Unset:
    """As Litestar says that there is no session yet."""


@pytest.mark.parametrize(
    ("headers", "more"),
    [
        ([], {"session": {}}),
        ([], {"session": None}),
        ([], {"session": Unset}),
        ([("cookie", "")], {}),
        ([("x-other", "k")], {"query_string": b"tokens=1"}),
    ],
)
def test_who_has_no_credential_at_all_is_anonymous(headers, more) -> None:
    assert principal(*headers, api_keys=API_KEYS, **more) == ANONYMOUS


def test_a_user_or_another_authorization_suffices() -> None:
    more = {"api_keys": API_KEYS, "session": {"user_id": 1}}
    unseen = [("cookie", "any=1"), ("x-api-key", "k")]

    assert principal(*unseen, user=User("ada"), **more) == principal(user=User("ada"))
    assert principal(*unseen, BEARER, **more) == principal(BEARER)
    assert principal(("authorization", "ada"), *unseen) == principal(("authorization", "ada"))
    assert principal(BASIC, BEARER, *unseen) == principal(BASIC, BEARER)


# The authority, and other headers


@pytest.mark.parametrize(
    ("host", "scheme", "same"),
    [
        ("shop.example", "http", "shop.example"),
        ("SHOP.example", "http", "shop.example"),
        ("shop.example:80", "http", "shop.example"),
        ("shop.example:443", "https", "shop.example"),
        ("shop.example.", "http", "shop.example"),
        ("Shop.Example.:80", "http", "shop.example"),
        ("shop.example:", "http", "shop.example"),
        ("shop.example:443", "http", "shop.example:443"),
        ("shop.example:80", "https", "shop.example:80"),
        ("shop.example:8000", "http", "shop.example:8000"),
        ("[::1]", "http", "[::1]"),
        ("[::1]:80", "http", "[::1]"),
        ("[::80]", "http", "[::80]"),
        ("[::1]:8000", "http", "[::1]:8000"),
    ],
)
def test_an_authority_has_one_spelling(host: str, scheme: str, same: str) -> None:
    scope = keyed(headers=[("host", host)], scheme=scheme)

    assert IdempotencyPolicy().senders.sender_of(scope).scope == (ANONYMOUS, same.encode())


def test_the_authority_belongs_to_the_scope_of_a_key_unless_it_is_named() -> None:
    named = IdempotencyPolicy(authority="Shop.example")

    assert key_scope(host="a.example") != key_scope(host="b.example") != key_scope()
    assert key_scope(named, host="a.example") == key_scope(named, host="b.example")
    assert key_scope(named) == key_scope(host="shop.example")


def test_further_headers_may_belong_to_it() -> None:
    policy = IdempotencyPolicy(vary=["X-Tenant", "X-Shop"])
    scopes = [
        key_scope(policy),
        key_scope(policy, x_tenant=""),
        key_scope(policy, x_tenant="a"),
        key_scope(policy, x_tenant="b"),
        key_scope(policy, x_shop="a"),
        key_scope(policy, x_tenant="a", x_shop="a"),
    ]

    assert len(set(scopes)) == len(scopes)
    assert key_scope(policy, x_other="a") == key_scope(policy)
    assert key_scope(policy, X_TENANT="a") == key_scope(policy, x_tenant="a")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"vary": "X-Tenant"}, "X-Tenant"),
        ({"vary": ["X Tenant"]}, "X Tenant"),
        ({"vary": [5]}, "5"),
        ({"authority": ""}, "''"),
        ({"authority": "https://shop.example"}, "https://shop.example"),
        ({"authority": "shop.example/a"}, "shop.example/a"),
        ({"authority": 5}, "5"),
        ({"session_cookie": ""}, "''"),
        ({"session_cookie": "session=a"}, "session=a"),
        ({"anonymous": "deny"}, "deny"),
    ],
)
def test_what_is_no_name_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(DurableUsageError, match=next(iter(options))) as caught:
        IdempotencyPolicy(**options)

    assert named in str(caught.value)


# Ids


def test_ids_show_neither_key_nor_sender_without_the_secret() -> None:
    ids, others = RequestIds(b"1" * 32), RequestIds(b"2" * 32)
    made = ids.workflow_id([b"anonymous", b"host"], b"secret")

    assert "secret" not in made
    assert len(made) == 42
    assert made == RequestIds(b"1" * 32).workflow_id([b"anonymous", b"host"], b"secret")
    other = others.workflow_id([b"anonymous", b"host"], b"secret")
    assert made[:16] != other[:16]
    assert made[16:] != other[16:]


def test_no_part_of_a_sender_is_taken_for_one_of_a_key() -> None:
    ids = RequestIds(b"1" * 32)
    made = {
        ids.workflow_id([b"a", b"b"], b"c"),
        ids.workflow_id([b"a"], b"b", b"c"),
        ids.workflow_id([b"a", b"b", b"c"]),
        ids.workflow_id([b"ab"], b"c"),
    }

    assert len({one[16:] for one in made}) == 4


def test_an_id_shows_its_owner_to_processes_with_the_secret() -> None:
    ids = RequestIds(b"1" * 32)
    made = ids.workflow_id([b"ada", b"host"], b"k")

    assert ids.is_request_of([b"ada", b"host"], made)
    assert not ids.is_request_of([b"bob", b"host"], made)
    assert not ids.is_request_of([b"ada", b"other"], made)
    assert not RequestIds(b"2" * 32).is_request_of([b"ada", b"host"], made)
