"""An application whose responses are scripted, call by call."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from asgi_durable import Durable, IdempotencyPolicy
from asgi_durable.middleware.asgi import Receive, Scope, Send
from support.asgi import Exchange, keyed
from support.interruption import Gate

Item = bytes | Gate | Exception
ID = re.compile(rb"id: [0-9a-f]+-([0-9]+)\n")


class Script:
    """Responds to its n-th call with the n-th script, and to later calls with the last one.

    Args:
        scripts: The chunks to send, the places to wait at, and the exception to raise.
        media_type: The media type of the responses.
        statuses: The statuses of the responses, if they are not all 200.

    Attributes:
        calls: How often it was called.
    """

    def __init__(
        self,
        *scripts: Sequence[Item],
        media_type: bytes = b"text/event-stream",
        statuses: Sequence[int] = (200,),
    ) -> None:
        self._scripts = scripts
        self._statuses = statuses
        self._media_type = media_type
        self.calls = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        number, self.calls = self.calls, self.calls + 1
        script = self._scripts[min(number, len(self._scripts) - 1)]
        status = self._statuses[min(number, len(self._statuses) - 1)]
        headers = [(b"content-type", self._media_type), (b"x-call", b"%d" % number)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for item in script:
            if isinstance(item, Gate):
                await item.wait()
            elif isinstance(item, Exception):
                raise item
            else:
                await send({"type": "http.response.body", "body": item, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def recording(url: str, **policy: object) -> Durable:
    """Return an instance that records streams."""
    settings: dict[str, object] = {"stream": "record", "stream_after": 0.0, "max_wait": 5.0}
    return Durable(url, idempotency=IdempotencyPolicy(**settings | policy), drain_timeout=0.0)  # type: ignore[arg-type]


def event(name: str) -> bytes:
    """Return an event."""
    return b"data: %s\n\n" % name.encode()


def events(names: str) -> list[bytes]:
    """Return an event for each letter."""
    return [event(name) for name in names]


def without_ids(body: bytes) -> bytes:
    """Return a body without the ids that the library has added."""
    return ID.sub(b"", body)


def offsets(body: bytes) -> list[int]:
    """Return the data of the events that were added, in order."""
    return [int(offset) for offset in ID.findall(body)]


def last_id(body: bytes) -> str:
    """Return the last id in a body."""
    return re.findall(rb"id: ([^\n]+)\n", body)[-1].decode()


class Client:
    """A client of events, and the events that it accepts, in order.

    Attributes:
        seen: The last id that it has seen.
    """

    def __init__(self) -> None:
        self._events: list[tuple[bytes, str]] = []
        self.seen: str | None = None

    @property
    def names(self) -> str:
        """The data of the events, one after the other."""
        return "".join(name for _, name in self._events)

    def take(self, body: bytes) -> Client:
        """Take what one connection brought; a part of an event at its end does not count."""
        for part in body.split(b"\n\n")[:-1]:
            lines = [line.partition(b": ") for line in part.split(b"\n")]
            fields = {name: value for name, _, value in lines}
            event_id = fields.get(b"id", b"")
            self.seen = event_id.decode() or self.seen
            if fields.get(b"event") == b"rollback":
                ids = [known for known, _ in self._events]
                to = fields[b"data"]
                assert not to or to in ids
                del self._events[ids.index(to) + 1 if to else 0 :]
            else:
                self._events.append((event_id, fields[b"data"].decode()))
        return self


def begin(app, exchanged: Exchange, seen: str | None = None, **more) -> asyncio.Task[None]:  # type: ignore[no-untyped-def]
    """Send a keyed request; its client has seen the event with an id, if that is given."""
    headers = [("Last-Event-ID", seen)] if seen is not None else []
    scope = keyed(headers=headers, **more)
    return asyncio.create_task(app(scope, exchanged.receive, exchanged.send))


async def ask(app, seen: str | None = None, **more) -> Exchange:  # type: ignore[no-untyped-def]
    """Do the same, and return the exchange once the app is through."""
    exchanged = Exchange(b"")
    await begin(app, exchanged, seen, **more)
    return exchanged
