"""Sessions and keys: what the log is told where the two do not go together."""

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
    "The application has sessions (%s), and no setting says whether their cookie tells whose a "
    "request with an idempotency key is: such requests are answered 500 PRINCIPAL_UNAVAILABLE "
    "where they have a cookie and neither a user nor Authorization. Name the cookie by "
    "IdempotencyPolicy(session_cookie=...), if the server does not renew its value, or set "
    'IdempotencyPolicy(principal=...), or IdempotencyPolicy(anonymous="share").'
)
_OF_RENEWAL = (
    "The cookie %r, which tells whose a key is (IdempotencyPolicy(session_cookie=...)), is renewed "
    "by an answer: to a retry that has the new value the key is new, and the work runs a second "
    "time. Keep the value the same within a session, by sessions that are kept on the server say, "
    "or tell senders apart by IdempotencyPolicy(principal=...)."
)

Policies = Callable[[], Iterable[IdempotencyPolicy]]


class SessionCookieMiddleware:
    """Tell the log, once, if an answer renews the cookie that says whose a key is.

    It belongs around the application's own middlewares, which may set the cookie.

    Args:
        app: The ASGI app to wrap.
        policies: Returns those that requests may have; asked once, with the first request.
    """

    def __init__(self, app: ASGIApp, policies: Policies) -> None:
        self.app = app
        self._policies = policies
        # Empty where no policy names a cookie, and once the log is told.
        self._names: list[re.Pattern[bytes]] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if self._names is None:
            self._names = _session_names(self._policies())
        if not self._names or scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent = scope["headers"]

        async def send_and_look(message: Message) -> None:
            if message["type"] == "http.response.start" and self._names:
                # An application may give them as what can be read once.
                headers = list(message.get("headers", ()))
                message = {**message, "headers": headers}
                self._look(sent, headers)
            await send(message)

        await self.app(scope, receive, send_and_look)

    def _look(self, sent: Headers, answered: Headers) -> None:
        for line in header_values(answered, b"set-cookie"):
            for names in self._names or ():
                renewed = renewed_cookie(line, names)
                # A login gives a cookie to who has none, and that is no renewal.
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
    """Write a line to the log for sessions of which no setting says whether they count.

    Nothing where an authentication around the idempotency middleware tells whose a request is.

    Args:
        policies: Returns those that requests may have.
        inside: Returns the classes of what is inside of the idempotency middleware.
        around: Returns those of what is around it.
    """
    try:
        has_none = any(p.methods and _tells_nothing(p) for p in policies())
        outer = list(around()) if has_none else []
        classes = [*outer, *inside()] if has_none else []
    except Exception:
        # It is for advice alone: an application that cannot be looked into starts all the same.
        logger.debug("The application cannot be looked into", exc_info=True)
        return
    found = next((kind for kind in classes if is_session(kind)), None)
    if found is not None and not any(map(is_authentication, outer)):
        logger.warning(_OF_SESSIONS, found.__qualname__)


def _tells_nothing(policy: IdempotencyPolicy) -> bool:
    is_told = policy.principal is not None or policy.session_cookie is not None
    return not is_told and policy.anonymous == "refuse"
