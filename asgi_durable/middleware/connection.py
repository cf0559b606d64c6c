"""The scope and the channels of one request, as the server passed them."""

from __future__ import annotations

from asgi_durable.fast_dataclass import fast_dataclass
from asgi_durable.middleware.asgi import Receive, Scope, Send
from asgi_durable.middleware.keys.principal import NO_API_KEYS, ApiKeys
from asgi_durable.middleware.request_bodies.body_source import BodySource

__all__ = ["Connection"]


@fast_dataclass()
class Connection:
    """The scope and the channels of one request, as the server passed them.

    Attributes:
        api_keys: Where clients of the application send API keys.
        ahead: The source that the body was read ahead from, if it was. ``receive`` returns the
            body once more then.
        merges_slashes: See :func:`~asgi_durable.middleware.fingerprints.request_target.path_of`.
    """

    scope: Scope
    receive: Receive
    send: Send
    api_keys: ApiKeys = NO_API_KEYS
    ahead: BodySource | None = None
    merges_slashes: bool = False
