"""Resumes stored requests without their clients, after a crash of the process that had them."""

from __future__ import annotations

import base64
import json
import logging
from dataclasses import dataclass
from typing import Any

from asgi_durable.engine.process.settings import Retention
from asgi_durable.engine.requests.server_recovery import BeginRequest, RequestServers
from asgi_durable.middleware.asgi import (
    HOP_BY_HOP,
    ASGIApp,
    Headers,
    Message,
    Receive,
    Scope,
    Send,
    request_name,
)
from asgi_durable.middleware.connection import Connection
from asgi_durable.middleware.idempotency.attempt import Client, RequestAttempt
from asgi_durable.middleware.policies.policy_routes import PolicyRoutes

__all__ = ["ResumedRequest", "ServingApp", "encode_request"]

logger = logging.getLogger(__name__)

SCOPE_KEY = "asgi_durable"
# Credentials, and headers of the connection, are not stored.
_NOT_STORED = HOP_BY_HOP | {b"authorization", b"cookie"}
# Test clients may make scopes without this member.
_ASGI = {"version": "3.0", "spec_version": "2.0"}
_TEXTS = ("http_version", "method", "scheme", "path", "root_path")
_BYTES = ("raw_path", "query_string")
_ADDRESSES = ("client", "server")
# Members of the lifespan's scope that resumed requests get too: the app and its resources.
_FROM_LIFESPAN = ("app", "state")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumedRequest:
    """The value of ``scope["asgi_durable"]`` in a request that is resumed without its client.

    Attributes:
        principal: The sender of the request: the result of the policy's ``principal``, or the
            identity of the user; ``None`` if credentials identified the sender.
        resumed: True.
    """

    principal: str | None
    resumed: bool = True


class ServingApp:
    """Resumes stored requests with an app, from the app's start to its shutdown.

    Args:
        app: The app.
        policies: The policies of its requests.

    Attributes:
        is_started: True while the app can serve requests without their clients. Requests that
            arrive before are not stored.
    """

    def __init__(self, app: ASGIApp, policies: PolicyRoutes) -> None:
        self._app = app
        self._policies = policies
        self._scope: Scope = {}
        self.is_started = False

    async def live(
        self, scope: Scope, receive: Receive, send: Send, servers: RequestServers
    ) -> None:
        """Pass the lifespan to the app; register the app from its start to its shutdown."""
        sent: list[str] = []
        has_received = False

        async def observed_receive() -> Message:
            nonlocal has_received
            message = await receive()
            has_received = True
            return message

        async def observed_send(message: Message) -> None:
            sent.append(message["type"])
            if sent[-1] == "lifespan.startup.complete":
                self._start(scope, servers)
            await send(message)

        try:
            await self._app(scope, observed_receive, observed_send)
        except Exception:
            if sent or has_received:
                self._end(servers)
            else:
                # The app has no lifespan: the middleware around this one acknowledges it.
                self._start(scope, servers)
            raise
        except BaseException:
            self._end(servers)
            raise
        if sent:
            self._end(servers)
        else:
            self._start(scope, servers)

    def _end(self, servers: RequestServers) -> None:
        self.is_started = False
        servers.remove(self)

    def _start(self, scope: Scope, servers: RequestServers) -> None:
        self._scope = {name: scope[name] for name in _FROM_LIFESPAN if name in scope}
        self.is_started = True
        servers.add(self)

    async def resume(self, data: bytes, begin: BeginRequest) -> None:
        """Call the app with a stored request; see ``RequestServer.resume``."""
        scope, body = _decode_request(data)
        scope.update(self._scope)
        if "state" in scope:
            # As servers do: each request has its own.
            scope["state"] = dict(scope["state"])
        policy = self._policies.find(scope)
        if policy is None or policy.recover != "server":
            request = begin(Retention())
            logger.warning(
                "Request %s (%s) is left to its client: its policy has no recover='server'",
                request.workflow_id,
                request_name(scope),
            )
            await request.leave_for_retry()
            return
        attempt = RequestAttempt(
            self._app,
            policy,
            Connection(scope, _receive_nothing, _drop),
            body,
            Client(_drop, is_detached=True),
        )
        await attempt.handle(begin(policy.final_retention))


def encode_request(scope: Scope, body: bytes, principal: bytes) -> bytes:
    """Return a request as bytes, so that it can be resumed without its client.

    Args:
        scope: The request's.
        body: The whole body.
        principal: The request's, as the middleware identified it.

    Returns:
        ASCII JSON, without ``Authorization``, ``Cookie`` and any hash of them.
    """
    document: dict[str, Any] = {"version": 1, "asgi": scope.get("asgi", _ASGI)}
    document |= {name: scope[name] for name in _TEXTS if name in scope}
    document |= {name: _text(scope[name]) for name in _BYTES if scope.get(name) is not None}
    document |= {name: scope[name] for name in _ADDRESSES if scope.get(name) is not None}
    headers = _stored_headers(scope["headers"])
    document["headers"] = [[_text(name), _text(value)] for name, value in headers]
    document["body"] = base64.b64encode(body).decode("ascii")
    kind, _, name = principal.partition(b":")
    if kind in (b"principal", b"user"):
        document["principal"] = name.decode("utf-8", "surrogatepass")
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def _decode_request(data: bytes) -> tuple[Scope, bytes]:
    document: dict[str, Any] = json.loads(data)
    scope: dict[str, Any] = {"type": "http", "asgi": document["asgi"], "extensions": {}}
    scope |= {name: document[name] for name in _TEXTS if name in document}
    scope |= {name: document[name].encode("latin-1") for name in _BYTES if name in document}
    scope |= {name: tuple(document[name]) for name in _ADDRESSES if name in document}
    scope["headers"] = [
        (name.encode("latin-1"), value.encode("latin-1")) for name, value in document["headers"]
    ]
    scope[SCOPE_KEY] = ResumedRequest(principal=document.get("principal"))
    return scope, base64.b64decode(document["body"])


def _stored_headers(headers: Headers) -> Headers:
    lines = [(name.lower(), value) for name, value in headers]
    named = b",".join(value for name, value in lines if name == b"connection")
    left_out = _NOT_STORED.union(token.strip().lower() for token in named.split(b","))
    return [(name, value) for name, value in lines if name not in left_out]


def _text(value: bytes) -> str:
    return value.decode("latin-1")


async def _receive_nothing() -> Message:
    return {"type": "http.disconnect"}


async def _drop(_message: Message) -> None:
    """Drop a message: the client is disconnected, and its retry gets the committed response."""
