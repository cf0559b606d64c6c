"""Changes that a request makes to its session: stored with its response, and repeated by a replay.

A session middleware around the idempotency middleware sets its cookie while the response passes,
which is after the response was recorded, and only if the session was changed. A replay that does
not change the session would never set the cookie.
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

# A cookie has 4 KiB at most; a session that the server stores may be longer.
MAX_SESSION_BYTES = 64 * 1024
# The changes are stored among the response's headers under this name. No version replays a
# stored header of this name, and an application's own header of this name is not stored.
_NAME, _PREFIX = REPLAYED_HEADER, "session:"

_WARNING = (
    "%s sets its cookie while a response passes, and a replay changes no session: the retry of a "
    "login gets the stored response, and its client has no session. "
    "IdempotencyPolicy(keep_cookies=True) stores the changes that a request makes to its session, "
    "and cookies that the application sets itself, for the routes where that matters."
)


class SessionChanges:
    """Compares a request's session with its state at the beginning of the request.

    Args:
        scope: The request's scope.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._before = _json_values(scope)

    def encode_with(self, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """Return a response's encoded headers, ``Set-Cookie`` included, with the changes."""
        changes = self._changes()
        entries = [] if changes is None else [(_NAME.decode("ascii"), _PREFIX + changes)]
        return encode_headers(headers, keeps_cookies=True, entries=entries)

    def _changes(self) -> str | None:
        after, before = _json_values(self._scope), self._before
        changed = {
            key: text for key, text in after.items() if text is not None and before.get(key) != text
        }
        skipped = [key for key, text in after.items() if text is None]
        if skipped:
            logger.warning(
                "The session of %s is not stored whole with its response: %s cannot be JSON",
                request_name(self._scope),
                skipped,
            )
        removed = [key for key in before if key not in after]
        if not changed and not removed:
            return None
        changes = json.dumps(
            {"set": {key: json.loads(text) for key, text in changed.items()}, "removed": removed}
        )
        if len(changes) > MAX_SESSION_BYTES:
            logger.warning(
                "The session of %s is not stored with its response: its changes have %d bytes",
                request_name(self._scope),
                len(changes),
            )
            return None
        return changes


def restore_session(scope: Scope, recorded: bytes) -> None:
    """Repeat the session changes of the request whose response is replayed.

    Args:
        scope: The scope of the duplicate request.
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
        # The replay reads the headers again, and reports the damage.
        return
    # Only differences are set: a client whose session has the values gets no new cookie.
    for key, value in changes["set"].items():
        if key not in session or session[key] != value:
            session[key] = value
    for key in changes["removed"]:
        if key in session:
            del session[key]


def warn_of_lost_sessions(
    policies: Callable[[], Iterable[IdempotencyPolicy]], classes: Callable[[], Iterable[type]]
) -> None:
    """Log a warning if replays lose the changes that requests make to their sessions.

    Args:
        policies: Returns the policies of all requests.
        classes: Returns the classes of the application's middlewares.
    """
    try:
        covering = [policy for policy in policies() if policy.methods]
        # A developer who stores cookies for one route knows about sessions.
        is_known = any(policy.keep_cookies for policy in covering)
        kinds = list(classes()) if covering and not is_known else []
    except Exception:
        # The warning is only advice: an application that cannot be inspected starts as well.
        logger.debug("The application cannot be inspected", exc_info=True)
        return
    found = next((kind for kind in kinds if is_session(kind)), None)
    if found is not None:
        logger.warning(_WARNING, found.__qualname__)


def _json_values(scope: Scope) -> dict[str, str | None]:
    """Return the values of a session as JSON, ``None`` for a value that JSON cannot express."""
    session = scope.get("session")
    if not isinstance(session, MutableMapping):
        return {}
    return {str(key): _to_json(value) for key, value in session.items()}


def _to_json(value: object) -> str | None:
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError):
        return None
