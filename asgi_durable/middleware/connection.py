"""What a server has called the middleware with."""

from __future__ import annotations

from asgi_durable.fast_dataclass import fast_dataclass
from asgi_durable.middleware.asgi import Receive, Scope, Send
from asgi_durable.middleware.keys.principal import NO_API_KEYS, ApiKeys
from asgi_durable.middleware.request_bodies.body_source import BodySource

__all__ = ["Connection"]


@fast_dataclass()
class Connection:
    """What a server has called the middleware with.

    Attributes:
        api_keys: Where clients of the application send API keys.
        ahead: Where the body was read ahead, if it was; then ``receive`` gives it once more.
        merges_slashes: See :func:`~asgi_durable.middleware.fingerprints.request_target.path_of`.
    """

    scope: Scope
    receive: Receive
    send: Send
    api_keys: ApiKeys = NO_API_KEYS
    ahead: BodySource | None = None
    merges_slashes: bool = False
