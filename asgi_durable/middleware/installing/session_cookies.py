"""Warns where an application's sessions and its idempotency keys do not fit together."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable

from asgi_durable.middleware.asgi import (
    ASGIApp,
    Headers,
    Message,
    Receive,
    Scope,
    Send,
    header_values,
)
from asgi_durable.middleware.installing.placement import is_authentication, is_session
from asgi_durable.middleware.keys.cookies import cookie_pairs, names_of_session, renewed_cookie
from asgi_durable.middleware.policies.policy import IdempotencyPolicy

__all__ = ["SessionCookieMiddleware", "warn_of_sessions"]

logger = logging.getLogger(__name__)

_OF_SESSIONS = (
    "The application has sessions (%s), and no setting says whether their cookie identifies the "
    "sender of a request with an idempotency key: such requests get 500 PRINCIPAL_UNAVAILABLE "
    "where they have a cookie and neither a user nor Authorization. Name the cookie by "
    "IdempotencyPolicy(session_cookie=...), if the server does not renew its value, or set "
    'IdempotencyPolicy(principal=...), or IdempotencyPolicy(anonymous="share").'
)
_OF_RENEWAL = (
    "The cookie %r, which identifies senders (IdempotencyPolicy(session_cookie=...)), is renewed "
    "by a response: to a retry that has the new value the key is new, and the work runs a second "
    "time. Keep the value the same within a session, for example by sessions that are stored on "
    "the server, or tell senders apart by IdempotencyPolicy(principal=...)."
)

Policies = Callable[[], Iterable[IdempotencyPolicy]]


class SessionCookieMiddleware:
    """Log a warning, once, if a response renews the cookie that identifies the sender of a key.

    It belongs around the application's own middlewares, which may set the cookie.

    Args:
        app: The ASGI app to wrap.
        policies: Returns the policies that requests may have; called once, at the first request.
    """

    def __init__(self, app: ASGIApp, policies: Policies) -> None:
        self.app = app
        self._policies = policies
        # Empty where no policy names a cookie, and after the warning.
        self._names: list[re.Pattern[bytes]] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if self._names is None:
            self._names = _session_names(self._policies())
        if not self._names or scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent = scope["headers"]

        async def send_checked(message: Message) -> None:
            if message["type"] == "http.response.start" and self._names:
                # An application may pass an iterator, which can be read once.
                headers = list(message.get("headers", ()))
                message = {**message, "headers": headers}
                self._warn_of_renewal(sent, headers)
            await send(message)

        await self.app(scope, receive, send_checked)

    def _warn_of_renewal(self, sent: Headers, received: Headers) -> None:
        for line in header_values(received, b"set-cookie"):
            for names in self._names or ():
                renewed = renewed_cookie(line, names)
                # A first cookie, for example at a login, is no renewal.
                if renewed is not None and _is_other_value(renewed, sent):
                    logger.warning(_OF_RENEWAL, renewed[0].decode("latin-1"))
                    self._names = []
                    return


def _session_names(policies: Iterable[IdempotencyPolicy]) -> list[re.Pattern[bytes]]:
    counting = [policy for policy in policies if policy.methods and policy.principal is None]
    named = {p.session_cookie for p in counting if p.session_cookie is not None}
    return [names_of_session(name) for name in sorted(named)]


def _is_other_value(renewed: tuple[bytes, bytes], sent: Headers) -> bool:
    pairs = cookie_pairs(header_values(sent, b"cookie"))
    before = {value for name, value in pairs if name == renewed[0]}
    return bool(before) and renewed[1] not in before


def warn_of_sessions(
    policies: Policies,
    inside: Callable[[], Iterable[type]],
    around: Callable[[], Iterable[type]],
) -> None:
    """Log a warning for sessions if no setting says whether they identify senders.

    There is none where an authentication around the idempotency middleware identifies them.

    Args:
        policies: Returns the policies that requests may have.
        inside: Returns the classes of the middlewares and routes inside the idempotency middleware.
        around: Returns the classes of the middlewares around it.
    """
    try:
        has_none = any(p.methods and _identifies_nobody(p) for p in policies())
        outer = list(around()) if has_none else []
        classes = [*outer, *inside()] if has_none else []
    except Exception:
        # The log line is only advice: an application that cannot be inspected starts all the same.
        logger.debug("The application cannot be inspected", exc_info=True)
        return
    found = next((kind for kind in classes if is_session(kind)), None)
    if found is not None and not any(map(is_authentication, outer)):
        logger.warning(_OF_SESSIONS, found.__qualname__)


def _identifies_nobody(policy: IdempotencyPolicy) -> bool:
    has_setting = policy.principal is not None or policy.session_cookie is not None
    return not has_setting and policy.anonymous == "refuse"
