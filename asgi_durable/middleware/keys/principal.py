"""The sender of a request: its principal, and the other parts of a key's scope."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from asgi_durable.engine.requests.request_ids import digest_of
from asgi_durable.errors import DurableUsageError
from asgi_durable.fast_dataclass import fast_dataclass
from asgi_durable.middleware.asgi import TOKEN, Headers, Scope, header_values
from asgi_durable.middleware.keys.cookies import cookie_pairs, names_of_session
from asgi_durable.request_errors import PrincipalUnavailableError

__all__ = ["ANONYMOUS", "NO_API_KEYS", "ApiKeys", "Sender", "Senders"]

ANONYMOUS = b"anonymous"
_AUTHORITY = re.compile(r"([A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_DEFAULT_PORTS = {"http": b"80", "https": b"443"}

_SETTINGS = (
    "IdempotencyPolicy(session_cookie=...) names the cookie that says it, if the server does not "
    "renew its value; IdempotencyPolicy(principal=...) is a function that returns it; and "
    'IdempotencyPolicy(anonymous="share") lets all such senders share their keys, and so their '
    "responses"
)


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """The places in which clients of an application send API keys, as it declares them.

    Cookies are not among them, as any cookie identifies a sender.

    Attributes:
        headers: Names of headers, in lower case.
        parameters: Names of parameters of the query.
    """

    headers: frozenset[bytes] = frozenset()
    parameters: frozenset[str] = frozenset()

    @classmethod
    def at(cls, places: Iterable[tuple[str, str]]) -> ApiKeys:
        """Return the API keys at some places: pairs of OpenAPI's ``in`` and ``name``."""
        names: dict[str, set[str]] = {"header": set(), "query": set(), "cookie": set()}
        for place, name in places:
            names.setdefault(place, set()).add(name)
        headers = {name.lower().encode("latin-1") for name in names["header"]}
        # Every request's `Authorization` is looked at anyway.
        return cls(frozenset(headers - {b"authorization"}), frozenset(names["query"]))

    def are_in(self, scope: Scope) -> bool:
        """Tell whether a request has an API key."""
        if self.headers and any(name.lower() in self.headers for name, _ in scope["headers"]):
            return True
        if not self.parameters:
            return False
        query = scope.get("query_string", b"").decode("latin-1")
        return any(name in self.parameters for name, _ in parse_qsl(query, keep_blank_values=True))


NO_API_KEYS = ApiKeys()


@fast_dataclass()
class Sender:
    """The sender of a key.

    Attributes:
        principal: The user, session or credentials that the request belongs to.
        scope: The scope in which a key is unique: the principal, the authority, and the values
            of the policy's ``vary``.
    """

    principal: bytes
    scope: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class _Credentials:
    """The headers of a request that identify its sender."""

    authorization: list[bytes]
    cookies: list[bytes]
    host: list[bytes]

    @classmethod
    def of(cls, headers: Headers) -> _Credentials:
        found = cls([], [], [])
        for name, value in headers:
            match name.lower():
                case b"authorization":
                    found.authorization.append(value)
                case b"cookie":
                    found.cookies.append(value)
                case b"host":
                    found.host.append(value)
                case _:
                    pass
        return found

    @property
    def are_basic(self) -> bool:
        """True if every ``Authorization`` is of the scheme Basic, which many senders may share."""
        return all(line.split(None, 1)[0].lower() == b"basic" for line in self.authorization)


class Senders:
    """Tells the senders of requests apart by the rules of a policy.

    Args:
        principal: Returns the principal of a request; ``None`` for the default rules of
            ``IdempotencyPolicy.principal``.
        session_cookie: The cookie that identifies the sender.
        anonymous: ``"refuse"`` or ``"share"``.
        authority: The service's name; ``None`` for the ``Host`` of each request.
        vary: Headers whose values belong to the scope of a key.

    Raises:
        DurableUsageError: The name of a cookie, a header or the authority is not legal.
    """

    def __init__(
        self,
        principal: Callable[[Scope], str | None] | None = None,
        session_cookie: str | None = None,
        anonymous: str = "refuse",
        authority: str | None = None,
        vary: Sequence[str] = (),
    ) -> None:
        self._configured = principal
        self._session = names_of_session(session_cookie) if session_cookie is not None else None
        self._session_cookie = (session_cookie or "").encode()
        self._may_share = anonymous == "share"
        self._authority = _checked_authority(authority) if authority is not None else None
        self._vary = _checked_names(vary)

    def sender_of(self, scope: Scope, api_keys: ApiKeys = NO_API_KEYS) -> Sender:
        """Return the sender of a request.

        Args:
            scope: An HTTP scope.
            api_keys: Where the application's clients send API keys.

        Raises:
            PrincipalUnavailableError: The principal is unknown. The request is not served as
                anybody else's, nor as anonymous.
        """
        credentials = _Credentials.of(scope["headers"])
        principal = self._principal(scope, credentials, api_keys)
        authority = self._authority
        if authority is None:
            authority = _normal_authority(b",".join(credentials.host), scope.get("scheme", "http"))
        if not self._vary:
            return Sender(principal, (principal, authority))
        values = [digest_of(*header_values(scope["headers"], name)) for name in self._vary]
        return Sender(principal, (principal, authority, *values))

    def former_principal(self, scope: Scope, sender: Sender) -> bytes | None:
        """Return the principal that a sender had before ids were made with a secret.

        ``None`` where a part of the credentials counted, which several senders may share.
        """
        kind = sender.principal.partition(b":")[0]
        if kind not in (b"session", b"credentials"):
            return sender.principal
        credentials = _Credentials.of(scope["headers"])
        sent = _without_empty_authorization(credentials)
        lines = sent.authorization
        if lines:
            return None if sent.are_basic else b"authorization:" + digest_of(*lines)
        cookies = self._session_cookies(credentials)
        is_plain = len(cookies) == 2 and cookies[0] == self._session_cookie and cookies[1]
        return b"session:" + digest_of(cookies[1]) if is_plain else None

    def _principal(self, scope: Scope, credentials: _Credentials, api_keys: ApiKeys) -> bytes:
        named = self._named_principal(scope)
        if named is not None:
            return named
        credentials = _without_empty_authorization(credentials)
        lines, cookies = credentials.authorization, self._session_cookies(credentials)
        if lines and cookies:
            # Several senders may share one of them: the credentials of a gateway, or a cookie
            # from before a login.
            return b"credentials:" + digest_of(digest_of(*lines), *cookies)
        if cookies:
            return b"session:" + digest_of(*cookies)
        if not (lines and not credentials.are_basic):
            self._refuse_unidentified(scope, credentials, api_keys)
        return b"authorization:" + digest_of(*lines) if lines else ANONYMOUS

    def _named_principal(self, scope: Scope) -> bytes | None:
        """Return the principal that the application names, ``None`` if it names none."""
        try:
            if self._configured is not None:
                principal = self._configured(scope)
                return ANONYMOUS if principal is None else _named(b"principal:", principal)
            user: Any = scope.get("user")
            if getattr(user, "is_authenticated", hasattr(user, "identity")):
                return _named(b"user:", user.identity)
        except Exception as error:
            msg = (
                f"the principal is unknown ({type(error).__name__}: {error}); give the user "
                "an identity, or configure IdempotencyPolicy(principal=...)"
            )
            raise PrincipalUnavailableError(msg) from error
        return None

    def _refuse_unidentified(
        self, scope: Scope, credentials: _Credentials, api_keys: ApiKeys
    ) -> None:
        """Refuse a request whose sender the application may know by other credentials.

        Raises:
            PrincipalUnavailableError: The request has such credentials, and the policy does not
                let their senders share their keys.
        """
        user = scope.get("user")
        is_unnamed = user is not None and not hasattr(user, "is_authenticated")
        if is_unnamed and not credentials.authorization:
            msg = "the user has no identity; configure IdempotencyPolicy(principal=...)"
            raise PrincipalUnavailableError(msg)
        if self._may_share:
            return
        if any(line.strip() for line in credentials.cookies):
            credential = "a cookie"
        elif _has_session(scope):
            credential = "a session"
        elif api_keys.are_in(scope):
            credential = "an API key"
        else:
            return
        msg = f"the request has {credential}, and no setting tells whose it is: {_SETTINGS}"
        raise PrincipalUnavailableError(msg, names_settings=True)

    def _session_cookies(self, credentials: _Credentials) -> list[bytes]:
        """Return name and value of each cookie of the session, one after the other.

        All of them count: of two with one name servers take the first one or the last. An empty
        one counts as well, so that it makes nobody anonymous.
        """
        names = self._session
        if names is None or not credentials.cookies:
            return []
        pairs = cookie_pairs(credentials.cookies)
        return [part for pair in pairs if names.fullmatch(pair[0]) for part in pair]


def _without_empty_authorization(credentials: _Credentials) -> _Credentials:
    """Leave out each ``Authorization`` without credentials, which scripts send before a login."""
    if not credentials.authorization:
        return credentials
    lines = [v for v in credentials.authorization if v.strip().lower() not in (b"", b"bearer")]
    return _Credentials(lines, credentials.cookies, credentials.host)


def _has_session(scope: Scope) -> bool:
    """Tell whether a middleware around this one has found a session that is not empty."""
    session = scope.get("session")
    # Litestar represents "none yet" by a class.
    return session is not None and not isinstance(session, type) and bool(session)


def _named(kind: bytes, name: object) -> bytes:
    if not isinstance(name, str) or not name:
        msg = f"a principal is a string that is not empty, got {name!r}"
        raise TypeError(msg)
    return kind + name.encode()


def _checked_names(names: Sequence[str]) -> tuple[bytes, ...]:
    if isinstance(names, str):
        msg = f'vary must be a list of headers, such as ["X-Tenant"]; got the text {names!r}'
        raise DurableUsageError(msg)
    for name in names:
        if not isinstance(name, str) or not TOKEN.fullmatch(name):
            msg = f'vary must have names of headers, such as "X-Tenant"; got {name!r}'
            raise DurableUsageError(msg)
    return tuple(name.lower().encode("ascii") for name in names)


def _normal_authority(host: bytes, scheme: str) -> bytes:
    """Return the canonical spelling of an authority: lower case, no default port, no final dot.

    Args:
        host: The value of ``Host``; servers pass HTTP/2's ``:authority`` as one.
        scheme: The request's.
    """
    name, colon, port = host.strip(b" \t").lower().rpartition(b":")
    if not colon or port.endswith(b"]"):
        # Without a port; the colons of an IPv6 address are within brackets.
        return (name + colon + port).removesuffix(b".")
    name = name.removesuffix(b".")
    return name if port in (b"", _DEFAULT_PORTS.get(scheme)) else name + colon + port


def _checked_authority(authority: str) -> bytes:
    if not isinstance(authority, str) or not _AUTHORITY.fullmatch(authority):
        msg = (
            "authority must be a host, with a port if it is part of the name, without a scheme or "
            f'a path, such as "shop.example"; got {authority!r}'
        )
        raise DurableUsageError(msg)
    return _normal_authority(authority.encode("ascii"), "")
