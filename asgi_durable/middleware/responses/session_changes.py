"""The changes of a request's session, stored with its response and made again for a replay.

A session middleware around the idempotency middleware sets its cookie when the response passes,
after the response was recorded, and only if the session was changed. No replay would ever set it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

from asgi_durable.middleware.asgi import Scope, header_values, request_name
from asgi_durable.middleware.installing.placement import is_session
from asgi_durable.middleware.policies.policy import IdempotencyPolicy
from asgi_durable.middleware.responses.headers import (
    REPLAYED_HEADER,
    decode_headers,
    encode_headers,
)

__all__ = ["SessionChanges", "restore_session", "warn_of_lost_sessions"]

logger = logging.getLogger(__name__)

# A cookie has 4 KiB at most; what a server keeps may be longer.
MAX_SESSION_BYTES = 64 * 1024
# The name among a response's recorded headers: no version sends a header that is recorded under
# it, and an application's own header of the name is not recorded.
_NAME, _PREFIX = REPLAYED_HEADER, "session:"

_OF_SESSIONS = (
    "%s sets its cookie as an answer passes, and a replay changes no session: a login that is "
    "retried under its key is answered again, and leaves its client without a session. "
    "IdempotencyPolicy(keep_cookies=True) keeps what a request has changed in its session, and "
    "cookies that the application sets itself, for the routes where that matters."
)


class SessionChanges:
    """Compares a session with what it was when a request began.

    Args:
        scope: The request's.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._before = _texts_of(scope)

    def encode_with(self, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """Return the headers of a response to store, ``Set-Cookie`` too, with the changes."""
        changes = self._changes()
        encoded = encode_headers(headers, keeps_cookies=True)
        if changes is None:
            return encoded
        return json.dumps(
            [*json.loads(encoded), [_NAME.decode("ascii"), _PREFIX + changes]]
        ).encode("ascii")

    def _changes(self) -> str | None:
        after, before = _texts_of(self._scope), self._before
        # A change that cannot be written is left out, and logged.
        changed = {
            key: text for key, text in after.items() if text is not None and before.get(key) != text
        }
        lost = [key for key, text in after.items() if text is None]
        if lost:
            logger.warning(
                "The session of %s is not kept whole with its answer: %s is no JSON",
                request_name(self._scope),
                lost,
            )
        removed = [key for key in before if key not in after]
        if not changed and not removed:
            return None
        changes = json.dumps(
            {"set": {key: json.loads(text) for key, text in changed.items()}, "removed": removed}
        )
        if len(changes) > MAX_SESSION_BYTES:
            logger.warning(
                "The session of %s is not kept with its answer: its changes have %d bytes",
                request_name(self._scope),
                len(changes),
            )
            return None
        return changes


def restore_session(scope: Scope, recorded: bytes) -> None:
    """Make the session changes of a request again whose response is sent again.

    Args:
        scope: The scope of the replay.
        recorded: The response's headers, encoded.
    """
    session = scope.get("session")
    if _NAME not in recorded or not isinstance(session, MutableMapping):
        return
    try:
        texts = [
            value.decode("latin-1") for value in header_values(decode_headers(recorded), _NAME)
        ]
        if not texts or not texts[-1].startswith(_PREFIX):
            return
        changes: dict[str, Any] = json.loads(texts[-1].removeprefix(_PREFIX))
    except ValueError:
        # The code that sends the response finds it damaged.
        return
    # Only what is different: a client that has its session already gets no other one.
    for key, value in changes["set"].items():
        if key not in session or session[key] != value:
            session[key] = value
    for key in changes["removed"]:
        if key in session:
            del session[key]


def warn_of_lost_sessions(
    policies: Callable[[], Iterable[IdempotencyPolicy]], classes: Callable[[], Iterable[type]]
) -> None:
    """Write a line to the log where replays lose what requests have changed in their sessions.

    Args:
        policies: Returns those that requests may have.
        classes: Returns the classes of the application's middlewares.
    """
    try:
        covering = [policy for policy in policies() if policy.methods]
        # A policy that stores cookies accepts this.
        is_known = any(policy.keep_cookies for policy in covering)
        kinds = list(classes()) if covering and not is_known else []
    except Exception:
        # It is for advice alone: an application that cannot be looked into starts all the same.
        logger.debug("The application cannot be looked into", exc_info=True)
        return
    found = next((kind for kind in kinds if is_session(kind)), None)
    if found is not None:
        logger.warning(_OF_SESSIONS, found.__qualname__)


def _texts_of(scope: Scope) -> dict[str, str | None]:
    """Return a session's values as JSON, ``None`` for one that is none."""
    session = scope.get("session")
    if not isinstance(session, MutableMapping):
        return {}
    return {str(key): _text_of(value) for key, value in session.items()}


def _text_of(value: object) -> str | None:
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError):
        return None
