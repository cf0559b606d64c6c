"""The policy: which requests are idempotent, and within which limits."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from asgi_durable import request_errors
from asgi_durable.engine.process.settings import SPOOLED_BYTES, Retention
from asgi_durable.errors import DurableError, DurableUsageError, StorageUnavailableError
from asgi_durable.middleware.asgi import Headers, Scope
from asgi_durable.middleware.fingerprints.json_members import JsonMembers
from asgi_durable.middleware.keys.key_sources import KeyFunction, KeySource, key_source
from asgi_durable.middleware.keys.principal import Senders
from asgi_durable.middleware.policy_functions import Verify
from asgi_durable.retry import RetryPolicy

__all__ = ["DEFAULT_STATUSES", "IdempotencyPolicy", "checked_statuses"]

# They change nothing, so nothing can happen twice.
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})

_CHOICES = {
    "anonymous": ("refuse", "share"),
    "scope": ("principal", "endpoint"),
    "dialect": ("default", "ietf", "stripe"),
    "on_disconnect": ("finish", "cancel"),
    "on_expired": ("forget", "reject"),
    "on_store_error": ("reject", "bypass"),
    "oversize": ("reject", "hash"),
    "stream": ("bypass", "record"),
    "recover": ("client", "server"),
}
_AMOUNTS = (
    "max_wait",
    "async_after",
    "retry_delay",
    "stream_after",
    "retention",
    "tombstone_retention",
    "max_lifetime",
    "max_request_body",
    "max_spooled",
    "max_response_body",
    "max_stream",
)
_DAY = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyPolicy:
    """Says which requests an ``Idempotency-Key`` makes durable, and within which limits.

    Times are in seconds, sizes in bytes. A request that arrives while another one with its key
    is running is a duplicate; one that arrives later is a retry.

    Attributes:
        methods: HTTP methods that are covered; on others the key has no effect.
        required: True to respond 400 to a covered request without a key.
        key: The place of a request's key: a header's name, ``"Idempotency-Key"`` by default; a
            JSON pointer into the JSON body to a string or a whole number, for example ``"/id"``;
            a parameter of the path, for example ``"{event_id}"``; or a function, async or not,
            that gets the ASGI scope and the body and returns the key, ``None`` for no key.
        header_name: The former way to name a header.
        verify: A function, async or not, that verifies the sender of a request with a key, from
            the ASGI scope and the body as it was sent. It is called for each such request,
            before its key is looked up. ``False`` makes the response a 403, a ``DurableError``
            that it raises becomes the response, and ``True`` and ``None`` let the request pass.
        docs_url: URL of the documentation of keys; linked from the problem responses about a key.
        validate_key: Returns whether a key is accepted; the response to others is a 400.
        scope: The scope in which a key is unique: with ``"principal"`` each principal has its
            own keys, and a key that is sent to another endpoint is a mistake (422); with
            ``"endpoint"`` each method and path of a principal has its own keys.
        principal: Returns the principal of a request from the ASGI scope, ``None`` for an
            anonymous one. Keys of different principals never meet. Nothing else counts then. By
            default the principal is the authenticated user of ``scope["user"]``, else a hash of
            ``Authorization`` and the session's cookie, of both where the request has both;
            ``anonymous`` is for the others.
        session_cookie: Name of the cookie that identifies the sender, and of the parts
            ``NAME-0``, ``NAME-1`` of a long one. Its value must stay the same from a request to
            its retry: where the server renews it, the retry is another sender's.
        anonymous: Says how to treat requests without a user, an ``Authorization`` and the
            session's cookie. With ``"refuse"`` the response is 500 ``PRINCIPAL_UNAVAILABLE`` if
            they have any cookie, a session, or an API key that the application declares, which
            may identify their senders; this is also so beside an ``Authorization`` of the scheme
            Basic, which a gateway may ask of everybody. Requests without any credential belong
            to one principal. With ``"share"`` all of them share their keys, and so their
            responses.
        authority: The only name of the service, for example ``"shop.example"``, where clients
            call it by several. By default the request's ``Host`` belongs to the scope of a key.
        vary: Further headers whose values belong to the scope of a key, for example
            ``["X-Tenant"]``.
        fingerprint: Returns the data that a retry must not change, from the ASGI scope and the
            body; or JSON pointers to the members of a JSON body that it must not change, for
            example ``["/id"]``, while it may change the others. By default these are the method,
            path, query, media type and body; JSON bodies are compared by their meaning.
        store_4xx: True to store a 4xx response even if the handler has recorded nothing before
            it. Never stored: 401, 403, 407, 408, 421, 425 and 429.
        keep_cookies: True to store ``Set-Cookie`` with a response, and to send it with a replay.
        max_attempts: Number of attempts of a request that fails or is interrupted again and
            again; from then on the response is 500 ``ATTEMPTS_EXHAUSTED``. ``None`` for no limit.
        retry_delay: Seconds for which the retry of a failed request is refused, 503
            ``RETRY_LATER``; or a ``RetryPolicy`` for delays that grow, of which only the times
            count. ``Retry-After`` on the handler's 5xx takes precedence. At most
            ``max_lifetime``.
        max_wait: Seconds for which a duplicate waits for the running request, before the
            response is 409; ``Prefer: wait=N`` may make it less, never more.
        async_after: Seconds after which the response is 202 with the URL of the status page,
            even if the client has not asked for it; ``None`` for never.
        dialect: With ``"ietf"`` the response to a duplicate is 409 at once, as the draft has it;
            with ``"stripe"`` too, and the one to a key of another request is 400 instead of 422.
        statuses: Other statuses for the library's own responses to keyed requests, by code:
            ``{"IN_PROGRESS": 423}``. Each is 400 to 599. Clients should go by the member
            ``retryable`` of these responses.
        status_prefix: Path below which the status pages of a client's own requests are, and
            their responses later; ``None`` for no pages. The response to
            ``Prefer: respond-async`` has the URL of such a page.
        client_may_cancel: True to let clients cancel their own requests, by ``DELETE`` on the
            status page: 204, or 409 if the request is finished.
        on_disconnect: With ``"finish"`` the handler runs on without the client; with
            ``"cancel"`` it stops, and the retry continues behind the last recorded step.
        on_store_error: With ``"reject"`` the response is 503 where the storage is not available;
            with ``"bypass"`` the request is served without any protection, and the response says
            so (``Idempotency-Status: ignored``).
        recover: With ``"client"`` a request whose process died or stopped waits for its retry;
            with ``"server"`` any process that serves the application continues it by itself. The
            request is stored for that, without ``Authorization`` and ``Cookie``.
        single_transaction: True for handlers that are one ``durable.transaction`` and call
            nothing else of the library. One commit claims the request, writes the transaction's
            rows and stores the response, or does none of this.
        retention: Seconds for which a response is stored, from its completion.
        on_expired: With ``"forget"`` the key is free at the end of the retention; with
            ``"reject"`` the response is 410 for ``tombstone_retention`` seconds more, and
            nothing runs again.
        tombstone_retention: Seconds for ``on_expired="reject"``; 30 days by default.
        max_lifetime: Seconds after which a request without a response, and without retries, is
            deleted; 7 days by default.
        stream_after: Seconds without a further chunk after which the chunks so far of an
            unfinished response are sent. They are sent as well after four times as long, however
            fast the chunks follow each other.
        stream: Says how to treat a response that is sent while the app produces it: an event
            stream, or a slow or long response. ``"bypass"`` passes it through; ``"record"``
            makes each chunk durable before it is sent, sends all of it to retries, and lets
            duplicates follow it.
        max_stream: Bytes; a longer stream passes through from there on and is not stored.
        max_request_body: Bytes; a body of up to this length is read before the app is called.
        oversize: Says how to treat a request with a longer body: ``"reject"`` responds 413;
            ``"hash"`` passes the body to the app as it arrives, and hashes it meanwhile.
        max_spooled: Bytes of temporary files for the bodies of duplicates in a process, all
            together, for ``oversize="hash"`` (1 GiB by default). A longer body cannot be sent
            again while its request is unfinished; where the space is used up, the response to a
            duplicate is 503 ``SPOOL_FULL``. Only the application's policy counts, not a route's.
        max_response_body: Bytes; a longer response passes through and is not stored.

    Raises:
        DurableUsageError: A method is safe; a word, a code or a name is not valid; a number is
            negative; the key cannot be in this place; a fingerprint, a key or ``verify`` needs
            whole bodies, which ``oversize="hash"`` does not store; or an option contradicts
            ``single_transaction``.

    Example::

        IdempotencyPolicy(required=True, max_wait=2.0, retention=7 * 24 * 3600.0)
    """

    methods: frozenset[str] = frozenset({"POST", "PATCH"})
    required: bool = False
    key: str | KeyFunction | None = None
    header_name: str | None = None
    verify: Verify | None = None
    docs_url: str | None = None
    validate_key: Callable[[str], bool] | None = None
    scope: Literal["principal", "endpoint"] = "principal"
    principal: Callable[[Scope], str | None] | None = None
    session_cookie: str | None = None
    anonymous: Literal["refuse", "share"] = "refuse"
    authority: str | None = None
    vary: Sequence[str] = ()
    fingerprint: Callable[[Scope, bytes], str] | Sequence[str] | None = None
    store_4xx: bool = False
    keep_cookies: bool = False
    max_attempts: int | None = None
    retry_delay: float | RetryPolicy | None = None
    max_wait: float = 5.0
    async_after: float | None = None
    dialect: Literal["default", "ietf", "stripe"] = "default"
    statuses: Mapping[str, int] = field(default_factory=dict, hash=False)
    status_prefix: str | None = "/durable/requests"
    client_may_cancel: bool = False
    on_disconnect: Literal["finish", "cancel"] = "finish"
    on_store_error: Literal["reject", "bypass"] = "reject"
    recover: Literal["client", "server"] = "client"
    single_transaction: bool = False
    retention: float = _DAY
    on_expired: Literal["forget", "reject"] = "forget"
    tombstone_retention: float = 30 * _DAY
    max_lifetime: float = 7 * _DAY
    stream_after: float = 0.25
    max_request_body: int = 1024 * 1024
    oversize: Literal["reject", "hash"] = "reject"
    max_spooled: int = SPOOLED_BYTES
    max_response_body: int = 1024 * 1024
    stream: Literal["bypass", "record"] = "bypass"
    max_stream: int = 16 * 1024 * 1024
    # Derived from the above: the place of the key, its header's name as in a scope, whether the
    # body is read before the key is looked up, the way to make the fingerprint, statuses by code.
    key_source: KeySource = field(init=False, repr=False, compare=False)
    header: bytes | None = field(init=False, repr=False, compare=False)
    needs_body: bool = field(init=False, repr=False, compare=False)
    make_fingerprint: Callable[[Scope, bytes], str] | JsonMembers | None = field(
        init=False, repr=False, compare=False
    )

    status_by_code: Mapping[str, int] = field(init=False, repr=False, compare=False)
    # Finds the sender of a request.
    senders: Senders = field(init=False, repr=False, compare=False)
    # The time for which a finished request is stored.
    final_retention: Retention = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the options, and derive attributes from them."""
        source = key_source(self.key, self.header_name)
        object.__setattr__(self, "key_source", source)
        object.__setattr__(self, "header", source.header)
        needs_body = source.needs_body or self.verify is not None
        object.__setattr__(self, "needs_body", needs_body)
        object.__setattr__(self, "make_fingerprint", _fingerprint_maker(self.fingerprint))
        of_dialect = {"KEY_REUSED": 400} if self.dialect == "stripe" else {}
        own = {**of_dialect, **checked_statuses(self.statuses)}
        object.__setattr__(self, "status_by_code", {**DEFAULT_STATUSES, **own})
        if safe := sorted(_SAFE_METHODS.intersection(self.methods)):
            msg = f"{safe[0]} changes nothing: a key has no meaning there"
            raise DurableUsageError(msg)
        self._refuse_unknown_words()
        self._set_senders()
        self._refuse_beside_single_transaction()
        self._refuse_beside_long_bodies()
        prefix = self.status_prefix
        if prefix is not None and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", prefix):
            msg = f"status_prefix must be a path such as /durable/requests, got {prefix!r}"
            raise DurableUsageError(msg)
        for name in _AMOUNTS:
            value = getattr(self, name)
            is_number = value is not None and not isinstance(value, RetryPolicy)
            if is_number and not 0 <= value < float("inf"):
                msg = f"{name} must be a number that is not negative, got {value!r}"
                raise DurableUsageError(msg)
        if self.max_attempts is not None and not self.max_attempts >= 1:
            msg = f"max_attempts must be at least 1, got {self.max_attempts!r}"
            raise DurableUsageError(msg)
        tombstone = self.tombstone_retention if self.on_expired == "reject" else 0.0
        object.__setattr__(self, "final_retention", Retention(self.retention, tombstone))

    def _set_senders(self) -> None:
        rules = (self.principal, self.session_cookie, self.anonymous, self.authority, self.vary)
        object.__setattr__(self, "senders", Senders(*rules))
        object.__setattr__(self, "vary", tuple(self.vary))

    def _refuse_beside_long_bodies(self) -> None:
        """Refuse options that need the whole body where long bodies are not stored."""
        needs = {
            "fingerprint=": self.fingerprint is not None,
            "verify=": self.verify is not None,
            f"key={self.key!r}": self.key_source.needs_body,
        }
        for option, is_wanted in needs.items():
            if self.oversize == "hash" and is_wanted:
                msg = f'{option} needs the whole body, and oversize="hash" keeps no long ones'
                raise DurableUsageError(msg)

    def _refuse_beside_single_transaction(self) -> None:
        """Refuse options that need a commit before that of the single transaction."""
        needs = {
            "max_attempts": self.max_attempts is not None,
            "async_after": self.async_after is not None,
            'on_store_error="bypass"': self.on_store_error == "bypass",
            'recover="server"': self.recover == "server",
            'oversize="hash"': self.oversize == "hash",
            'stream="record"': self.stream == "record",
        }
        for option, is_wanted in needs.items():
            if self.single_transaction and is_wanted:
                msg = f"{option} has no meaning for a single_transaction, which is all or nothing"
                raise DurableUsageError(msg)

    def _refuse_unknown_words(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                msg = f"{name} must be one of {', '.join(choices)}, got {value!r}"
                raise DurableUsageError(msg)

    @property
    def links(self) -> Headers:
        """A header with the URL of the documentation of keys, for responses to wrong ones."""
        if self.docs_url is None:
            return []
        return [(b"link", f'<{self.docs_url}>; rel="describedby"'.encode("ascii"))]

    def with_own_status(self, error: DurableError) -> DurableError:
        """Set the status that this policy gives to an error, and return the error."""
        error.status_code = self.status_by_code.get(error.code, error.status_code)
        return error


def _fingerprint_maker(
    fingerprint: Callable[[Scope, bytes], str] | Sequence[str] | None,
) -> Callable[[Scope, bytes], str] | JsonMembers | None:
    if fingerprint is None or callable(fingerprint):
        return fingerprint
    return JsonMembers(fingerprint)


_ERRORS = [getattr(request_errors, name) for name in request_errors.__all__]

# Statuses by code.
DEFAULT_STATUSES: Mapping[str, int] = {
    error.default_code: error.default_status for error in (*_ERRORS, StorageUnavailableError)
}


def checked_statuses(statuses: Mapping[str, int]) -> Mapping[str, int]:
    """Return statuses by code, after checking them.

    Raises:
        DurableUsageError: A code is not one of the library's, or a status is not 400 to 599.
    """
    for code, status in statuses.items():
        if code not in DEFAULT_STATUSES:
            msg = f"statuses: {code!r} is none of {', '.join(sorted(DEFAULT_STATUSES))}"
            raise DurableUsageError(msg)
        if not (isinstance(status, int) and 400 <= status <= 599):
            msg = f"statuses: the status of {code} must be 400 to 599, got {status!r}"
            raise DurableUsageError(msg)
    return statuses
