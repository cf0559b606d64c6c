"""An app that goes on with requests whose process is gone, without their clients."""

from __future__ import annotations

import base64
import json
import logging
from dataclasses import dataclass
from typing import Any

from asgi_durable.engine.process.settings import Retention
from asgi_durable.engine.requests.request_servers import BeginRequest, RequestServers
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
from asgi_durable.middleware.idempotency.attempt import RequestAttempt
from asgi_durable.middleware.policies.policy_routes import PolicyRoutes

__all__ = ["ResumedRequest", "ServingApp", "encode_request"]

logger = logging.getLogger(__name__)

SCOPE_KEY = "asgi_durable"
# Who sent it, and what only concerned the connection that it came on.
_NOT_KEPT = HOP_BY_HOP | {b"authorization", b"cookie"}
# Of a scope without it, as test clients make them.
_ASGI = {"version": "3.0", "spec_version": "2.0"}
_TEXTS = ("http_version", "method", "scheme", "path", "root_path")
_BYTES = ("raw_path", "query_string")
_ADDRESSES = ("client", "server")
# What the lifespan's scope has of an app and of what it has opened.
_OF_APP = ("app", "state")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumedRequest:
    """What ``scope["asgi_durable"]`` is where a request goes on without its client.

    Attributes:
        principal: Whose request it is: what the policy's ``principal`` returned, or the identity
            of the user; ``None`` where it was told by credentials.
        resumed: True.
    """

    principal: str | None
    resumed: bool = True


class ServingApp:
    """An app behind the middleware, from its start to its shutdown.

    Args:
        app: The app.
        policies: Those of its requests.

    Attributes:
        is_started: True once its lifespan has begun; what it is sent before is not kept.
    """

    def __init__(self, app: ASGIApp, policies: PolicyRoutes) -> None:
        self._app = app
        self._policies = policies
        self._scope: Scope = {}
        self.is_started = False

    async def live(
        self, scope: Scope, receive: Receive, send: Send, servers: RequestServers
    ) -> None:
        """Pass the lifespan on; let the app have requests from its start to its shutdown."""
        sent: list[str] = []
        has_received = False

        async def receive_and_note() -> Message:
            nonlocal has_received
            message = await receive()
            has_received = True
            return message

        async def send_and_note(message: Message) -> None:
            sent.append(message["type"])
            if sent[-1] == "lifespan.startup.complete":
                self._start(scope, servers)
            await send(message)

        try:
            await self._app(scope, receive_and_note, send_and_note)
        except Exception:
            if sent or has_received:
                self._end(servers)
            else:
                # It has no lifespan; who is outside answers for it.
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
        self._scope = {name: scope[name] for name in _OF_APP if name in scope}
        self.is_started = True
        servers.add(self)

    async def resume(self, data: bytes, begin: BeginRequest) -> None:
        """Call the app with a request that was kept; see ``RequestServer.resume``."""
        scope, body = _decode_request(data)
        scope.update(self._scope)
        if "state" in scope:
            # As servers do: each request has its own.
            scope["state"] = dict(scope["state"])
        policy = self._policies.find(scope)
        if policy is None or policy.recover != "server":
            request = begin(Retention())
            logger.warning(
                "Request %s (%s) is left to its client: its policy does not let it go on without",
                request.workflow_id,
                request_name(scope),
            )
            await request.leave_for_retry()
            return
        attempt = RequestAttempt(
            self._app, policy, Connection(scope, _receive_nothing, _send_nowhere), body, []
        )
        attempt.has_no_client()
        await attempt.handle(begin(policy.final_retention))


def encode_request(scope: Scope, body: bytes, principal: bytes) -> bytes:
    """Return what is kept of a request, so that it can go on without its client.

    Neither ``Authorization`` nor ``Cookie`` is, nor any hash of them.
    """
    document: dict[str, Any] = {"version": 1, "asgi": scope.get("asgi", _ASGI)}
    document |= {name: scope[name] for name in _TEXTS if name in scope}
    document |= {name: _text(scope[name]) for name in _BYTES if scope.get(name) is not None}
    document |= {name: scope[name] for name in _ADDRESSES if scope.get(name) is not None}
    document["headers"] = [[_text(name), _text(value)] for name, value in _kept(scope["headers"])]
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


def _kept(headers: Headers) -> Headers:
    lines = [(name.lower(), value) for name, value in headers]
    named = b",".join(value for name, value in lines if name == b"connection")
    left_out = _NOT_KEPT.union(token.strip().lower() for token in named.split(b","))
    return [(name, value) for name, value in lines if name not in left_out]


def _text(value: bytes) -> str:
    return value.decode("latin-1")


async def _receive_nothing() -> Message:
    return {"type": "http.disconnect"}


async def _send_nowhere(_message: Message) -> None:
    """Nobody is there to be answered; what is committed is for the retry."""
