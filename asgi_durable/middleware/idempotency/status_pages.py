"""Where a client looks for a request that takes long: its status, and its answer later."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from urllib.parse import quote

from asgi_durable.engine.requests.claim_results import whole_seconds_until
from asgi_durable.engine.requests.claims import Progress, Requests
from asgi_durable.engine.requests.progress import CANCELLED
from asgi_durable.engine.requests.request_ids import RequestIds, is_former_request_of
from asgi_durable.errors import DurableError, WorkflowNotFoundError
from asgi_durable.ids import REQUEST_ID_PATTERN
from asgi_durable.middleware.asgi import Headers, Scope, Send, route_path
from asgi_durable.middleware.connection import Connection
from asgi_durable.middleware.keys.principal import Senders
from asgi_durable.middleware.problem_details import send_problem
from asgi_durable.middleware.responses.durable_streams import (
    closed_marks,
    send_catch_up,
    wants_part,
)
from asgi_durable.middleware.responses.replay import (
    StoredResponse,
    send_stored_response,
    send_stream,
)
from asgi_durable.middleware.responses.session_changes import restore_session
from asgi_durable.request_errors import (
    RequestCancelledError,
    RequestFinishedError,
    RequestInProgressError,
)

__all__ = ["StatusPages", "send_accepted"]

_READING = frozenset({"GET", "HEAD"})


class StatusPages:
    """Serves ``GET prefix/ID`` and ``GET prefix/ID/result``, to whose request it is.

    Args:
        prefix: A path without a slash at its end.
        may_cancel: True to serve ``DELETE prefix/ID`` as well.
    """

    def __init__(self, prefix: str, *, may_cancel: bool = False) -> None:
        self._prefix = prefix
        self._may_cancel = may_cancel
        self._pattern = re.compile(f"{re.escape(prefix)}/({REQUEST_ID_PATTERN})(/result)?")

    def find(self, scope: Scope) -> tuple[str, bool] | None:
        """Return whose page a path is, and whether it is that of the result."""
        method = scope["method"]
        if method not in _READING and not (method == "DELETE" and self._may_cancel):
            return None
        path = route_path(scope)
        if not path.startswith(self._prefix):
            return None
        found = self._pattern.fullmatch(path)
        if found is None or (method == "DELETE" and found[2] is not None):
            return None
        return (found[1], found[2] is not None)

    def location(self, scope: Scope, workflow_id: str) -> tuple[bytes, bytes]:
        """Return the header that says where a request's status is."""
        mounted_at = quote(scope.get("root_path", "").rstrip("/"))
        return (b"location", f"{mounted_at}{self._prefix}/{workflow_id}".encode("ascii"))

    async def serve(
        self,
        connection: Connection,
        page: tuple[str, bool],
        senders: Senders,
        requests: Requests,
    ) -> None:
        """Answer; nobody learns of another principal's request that there is one.

        Raises:
            PrincipalUnavailableError: It cannot be told who asks.
            WorkflowNotFoundError: There is no such request of this principal.
            DurableError: An offset of its stream is malformed, or void.
            RequestFinishedError: It is to be cancelled, and is finished.
            ResponseDamagedError: What is recorded of its answer is damaged.
            EncryptionKeyMissingError: That is encrypted with a key that is not here.
            StorageError: The storage failed.
        """
        scope, send = connection.scope, connection.send
        workflow_id, wants_result = page
        if not _is_request_of(senders, scope, workflow_id, requests.ids):
            raise WorkflowNotFoundError(workflow_id)
        if scope["method"] == "DELETE":
            await _cancel(send, workflow_id, requests)
            return
        progress = await requests.progress(workflow_id)
        if progress is None:
            raise WorkflowNotFoundError(workflow_id)
        location = self.location(scope, workflow_id)
        answer = StoredResponse(workflow_id, progress.created_at_us, progress.response)
        if wants_result and await _send_recorded(connection, requests, answer, progress.state):
            return
        if progress.response is None:
            if wants_result:
                members = {"instance": location[1].decode("ascii"), "run": progress.attempts}
                error = _no_result(progress)
                await send_problem(send, error, headers=[location], members=members)
                return
            await _send_progress(send, 200, workflow_id, progress, [])
        elif wants_result:
            response = requests.opened(progress.response)
            restore_session(scope, response.headers)
            await send_stored_response(send, response, _response_headers(answer))
        else:
            result = (location[0], location[1] + b"/result")
            await _send_progress(send, 303, workflow_id, progress, [result])


def _is_request_of(senders: Senders, scope: Scope, workflow_id: str, ids: RequestIds) -> bool:
    sender = senders.sender_of(scope)
    if ids.is_request_of(sender.scope, workflow_id):
        return True
    former = senders.former_principal(scope, sender) if ids.may_be_former else None
    return former is not None and is_former_request_of(former, workflow_id)


async def _send_recorded(
    connection: Connection, requests: Requests, answer: StoredResponse, state: str
) -> bool:
    """Send a recorded stream, or the part of it that is asked for; return False if there is none.

    Raises:
        DurableError: See ``StatusPages.serve``.
    """
    if answer.response is not None and not answer.is_whole:
        return False
    streams, marks = requests.streams, _response_headers(answer)
    if wants_part(connection.scope):
        if state == CANCELLED:
            # Whoever reads part by part would wait for its end forever.
            return False
        if await send_catch_up(connection.scope, connection.send, streams, answer, marks):
            return True
    if answer.response is None and not streams.may_follow(answer.workflow_id):
        return False
    return await send_stream(connection, streams, answer, [*marks, *closed_marks(answer)])


def _response_headers(answer: StoredResponse) -> Headers:
    return [(b"durable-id", answer.workflow_id.encode())]


async def _cancel(send: Send, workflow_id: str, requests: Requests) -> None:
    if not await requests.cancel(workflow_id):
        msg = "the request is finished; it cannot be cancelled any more"
        raise RequestFinishedError(msg)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def _no_result(progress: Progress) -> DurableError:
    if progress.state == CANCELLED:
        return RequestCancelledError("the request was cancelled")
    error = RequestInProgressError("the request is not finished; try again later")
    error.retry_after_seconds = progress.retry_after_seconds
    return error


async def send_accepted(
    send: Send, workflow_id: str, headers: Headers, *, sleeps_until_us: int | None
) -> None:
    """Answer that the request is being carried out, and where to look (RFC 7240, section 4.1)."""
    state = "RUNNING" if sleeps_until_us is None else "SUSPENDED"
    content = {"id": workflow_id, "state": state}
    seconds = whole_seconds_until(sleeps_until_us or 0)
    await _send_json(send, 202, content, headers, retry_after_seconds=seconds)


async def _send_progress(
    send: Send, status: int, workflow_id: str, progress: Progress, headers: Headers
) -> None:
    content: dict[str, object] = {
        "id": workflow_id,
        "state": progress.state,
        "steps": progress.steps,
        "attempts": progress.attempts,
    }
    is_done = progress.response is not None or progress.state == CANCELLED
    seconds = None if is_done else progress.retry_after_seconds
    await _send_json(send, status, content, headers, retry_after_seconds=seconds)


async def _send_json(
    send: Send,
    status: int,
    content: Mapping[str, object],
    headers: Headers,
    *,
    retry_after_seconds: int | None,
) -> None:
    if retry_after_seconds is not None:
        content = {**content, "retry_after": retry_after_seconds}
        headers = [*headers, (b"retry-after", b"%d" % retry_after_seconds)]
    body = json.dumps(content).encode("ascii")
    own = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": body})
