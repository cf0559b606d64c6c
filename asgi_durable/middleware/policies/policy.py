"""Which requests are idempotent, and within which limits."""

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

# They change nothing, so there is nothing to keep from being done twice.
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
    """Which requests an ``Idempotency-Key`` makes durable.

    Attributes:
        methods: HTTP methods that are covered; on others the key has no effect.
        required: True to answer a covered request without a key 400.
        key: Where a request's key is: in a header, ``"Idempotency-Key"`` by default; in the JSON
            body, by a JSON pointer, ``"/id"`` say, to a string or a whole number; in the path,
            by the name of a parameter, ``"{event_id}"`` say; or what a function, async or not,
            returns for the ASGI scope and the body, ``None`` for no key.
        header_name: The former way to name a header.
        verify: Says whether a request with a key is from whom it claims to be: a function, async
            or not, of the ASGI scope and the body as it was sent. It is called for each one,
            before its key is looked up. With ``False`` the request is answered 403, with a
            ``DurableError`` that it raises as that says; ``True`` and ``None`` let it pass.
        docs_url: Where the use of keys is explained; linked from the
            problem answers about a key.
        validate_key: Returns whether a key is accepted; others are answered 400.
        scope: Within what a key is unique: with ``"principal"`` each principal has its own, and
            one that is sent to another endpoint is a mistake (422); with ``"endpoint"`` each
            method and path of a principal has its own.
        principal: Returns whose request it is, from the ASGI scope, ``None`` for nobody's; keys
            of different principals never meet. It alone decides. By default the authenticated
            user of ``scope["user"]``, else a hash of ``Authorization`` and of the session's
            cookie, whichever there are; ``anonymous`` says what becomes of others.
        session_cookie: Name of the cookie that says whose request it is, and of the parts
            ``NAME-0``, ``NAME-1`` of one that is split. Its value must stay the same from a
            request to its retry: one that the server renews makes the retry another sender's.
        anonymous: What becomes of requests that neither a user nor ``Authorization`` nor the
            session's cookie tells apart. With ``"refuse"`` those that have any cookie, a
            session, or an API key that the application declares are answered 500
            ``PRINCIPAL_UNAVAILABLE``, as their senders may be told apart by it; so are those
            with such a thing beside an ``Authorization`` of the scheme Basic, which a gateway
            may ask of everybody. Those without any credential are one principal. With
            ``"share"`` all of them share their keys, and so their answers.
        authority: The one name that the service counts as, ``"shop.example"`` say, where clients
            call it by several. By default the request's ``Host`` belongs to the scope of a key.
        vary: Further headers whose values belong to the scope of a key, ``["X-Tenant"]`` say.
        fingerprint: Returns what must not change between retries, from the ASGI scope and the
            body; or JSON pointers to the members of a JSON body that must not, ``["/id"]`` say,
            where others may. By default the method, path, query, media type and body; a JSON
            body is compared by what it says.
        store_4xx: True to keep an answer of 4xx even where nothing was recorded before it.
            Never kept: 401, 403, 407, 408, 421, 425 and 429.
        keep_cookies: True to keep ``Set-Cookie`` with an answer, and to set it again with a replay.
        max_attempts: How often a request is tried that fails or is interrupted again and
            again; from then on it is answered 500 ``ATTEMPTS_EXHAUSTED``. ``None`` for ever.
        retry_delay: Seconds that a retry of a request that failed is refused, 503
            ``RETRY_LATER``; a ``RetryPolicy`` for more and more of them, of which only the times
            count. ``Retry-After`` on the handler's 5xx goes first. ``max_lifetime`` at most.
        max_wait: Seconds that a request waits for a twin that is running already, before it is
            answered 409; ``Prefer: wait=N`` may make it less, never more.
        async_after: Seconds after which a request is answered 202 with where to look, although
            its client has not asked for that; ``None`` for never.
        dialect: ``"ietf"`` answers a twin 409 at once, as the draft has it; ``"stripe"`` as
            well, and a key of another request 400, not 422.
        statuses: Statuses of the library's own answers to keyed requests, by code, where they are
            to be others: ``{"IN_PROGRESS": 423}``. Each is 400 to 599, and what a client does
            about it is told by the answer's ``retryable``.
        status_prefix: Path below which the status of a client's own requests is served, and
            their answers later; ``None`` for nowhere. ``Prefer: respond-async`` is answered
            with where to look.
        client_may_cancel: True to let clients cancel their own requests, with ``DELETE`` where
            their status is: 204, or 409 if it is finished.
        on_disconnect: ``"finish"`` goes on without the client; ``"cancel"`` stops where it is,
            and the retry goes on after what is recorded.
        on_store_error: ``"reject"`` answers 503 where the storage is not available;
            ``"bypass"`` serves the request without any protection, and says so in the answer
            (``Idempotency-Status: ignored``).
        recover: Who goes on with a request whose process died or stopped: with ``"client"`` its
            retry; with ``"server"`` any process that serves the application, without waiting for
            one. The request is kept for that, without ``Authorization`` and ``Cookie``.
        single_transaction: True for handlers that are one ``durable.transaction`` and call
            nothing else of the library's: the request is claimed, the transaction's rows are
            written and the answer is kept by one commit, or none of them.
        retention: Seconds that an answer is kept, from its completion.
        on_expired: ``"forget"`` frees the key at the end of the retention; ``"reject"`` answers
            410 for ``tombstone_retention`` seconds more, and carries nothing out again.
        tombstone_retention: See there; 30 days.
        max_lifetime: Seconds that a request is kept which nobody retries and which has no
            answer; 7 days.
        stream_after: Seconds without a further piece of a body that is not complete, after
            which what there is of it is sent; it is sent as well after four times as long,
            however fast the pieces follow each other.
        stream: What is done with an answer that is sent while it is produced, an event stream or
            one that takes long or is long: ``"bypass"`` passes it through; ``"record"`` makes
            each piece durable before it is sent, gives the whole to retries, and lets twins
            follow it.
        max_stream: Bytes; a longer stream passes through from there on and is not kept.
        max_request_body: Bytes; of a body up to this length all is read before the app is
            called.
        oversize: What becomes of a request with a longer body: ``"reject"`` answers 413;
            ``"hash"`` hands the body to the app as it arrives, and learns its fingerprint
            meanwhile.
        max_spooled: Bytes of temporary files that the bodies of duplicates may take in a process,
            all together (1 GiB), see there; no longer body can be sent again while its request
            is not finished. Beyond it a duplicate is answered 503 ``SPOOL_FULL``. The
            application's policy counts, whatever a route's says.
        max_response_body: Bytes; a longer answer passes through and is not kept.

    Raises:
        DurableUsageError: A method is safe, a word or a code is unknown, a name is none, a number
            is negative, the key is in no such place, or a fingerprint, a key or a check needs
            whole bodies that are not kept; or a single transaction cannot do what is asked for
            besides.
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
    # Where the key is, the name of its header as it is in a scope, whether the body is read before
    # the key is looked up, what makes the fingerprint, and all statuses by code.
    key_source: KeySource = field(init=False, repr=False, compare=False)
    header: bytes | None = field(init=False, repr=False, compare=False)
    needs_body: bool = field(init=False, repr=False, compare=False)
    make_fingerprint: Callable[[Scope, bytes], str] | JsonMembers | None = field(
        init=False, repr=False, compare=False
    )

    status_by_code: Mapping[str, int] = field(init=False, repr=False, compare=False)
    # Tells whose key a request has.
    senders: Senders = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        source = key_source(self.key, self.header_name)
        object.__setattr__(self, "key_source", source)
        object.__setattr__(self, "header", source.header)
        needs_body = source.needs_body or self.verify is not None
        object.__setattr__(self, "needs_body", needs_body)
        object.__setattr__(self, "make_fingerprint", _maker_of(self.fingerprint))
        of_dialect = {"KEY_REUSED": 400} if self.dialect == "stripe" else {}
        own = {**of_dialect, **checked_statuses(self.statuses)}
        object.__setattr__(self, "status_by_code", {**DEFAULT_STATUSES, **own})
        if safe := sorted(_SAFE_METHODS.intersection(self.methods)):
            msg = f"{safe[0]} changes nothing: a key has no meaning there"
            raise DurableUsageError(msg)
        self._refuse_unknown_words()
        self._tell_senders_apart()
        self._refuse_before_the_commit()
        self._refuse_long_bodies()
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

    def _tell_senders_apart(self) -> None:
        rules = (self.principal, self.session_cookie, self.anonymous, self.authority, self.vary)
        object.__setattr__(self, "senders", Senders(*rules))
        object.__setattr__(self, "vary", tuple(self.vary))

    def _refuse_long_bodies(self) -> None:
        """Refuse what needs the whole body where long ones are not kept."""
        needs = {
            "fingerprint=": self.fingerprint is not None,
            "verify=": self.verify is not None,
            f"key={self.key!r}": self.key_source.needs_body,
        }
        for option, is_wanted in needs.items():
            if self.oversize == "hash" and is_wanted:
                msg = f'{option} needs the whole body, and oversize="hash" keeps no long ones'
                raise DurableUsageError(msg)

    def _refuse_before_the_commit(self) -> None:
        """Refuse what needs something durable before the commit of a single transaction."""
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
        """Where the use of keys is explained, for the answers to wrong ones."""
        if self.docs_url is None:
            return []
        return [(b"link", f'<{self.docs_url}>; rel="describedby"'.encode("ascii"))]

    @property
    def kept_for(self) -> Retention:
        """For how long a request is kept that is over."""
        tombstone = self.tombstone_retention if self.on_expired == "reject" else 0.0
        return Retention(self.retention, tombstone)

    @property
    def twins_wait(self) -> float:
        """Seconds that a twin waits for."""
        return self.max_wait if self.dialect == "default" else 0.0

    def restated(self, error: DurableError) -> DurableError:
        """Return one of the library's answers with the status that it has here."""
        error.status_code = self.status_by_code.get(error.code, error.status_code)
        return error


def _maker_of(
    fingerprint: Callable[[Scope, bytes], str] | Sequence[str] | None,
) -> Callable[[Scope, bytes], str] | JsonMembers | None:
    if fingerprint is None or callable(fingerprint):
        return fingerprint
    return JsonMembers(fingerprint)


_ERRORS = [getattr(request_errors, name) for name in request_errors.__all__]

# By code.
DEFAULT_STATUSES: Mapping[str, int] = {
    error.default_code: error.default_status for error in (*_ERRORS, StorageUnavailableError)
}


def checked_statuses(statuses: Mapping[str, int]) -> Mapping[str, int]:
    """Return statuses by code.

    Raises:
        DurableUsageError: A code is none of the library's, or a status none of an error.
    """
    for code, status in statuses.items():
        if code not in DEFAULT_STATUSES:
            msg = f"statuses: {code!r} is none of {', '.join(sorted(DEFAULT_STATUSES))}"
            raise DurableUsageError(msg)
        if not (isinstance(status, int) and 400 <= status <= 599):
            msg = f"statuses: the status of {code} must be 400 to 599, got {status!r}"
            raise DurableUsageError(msg)
    return statuses
