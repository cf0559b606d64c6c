"""Pages with the status of a keyed request, and with its response once it is finished."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from urllib.parse import quote

from starlette.responses import Response
from starlette.routing import compile_path

from asgi_durable.engine.requests.claim_results import whole_seconds_until
from asgi_durable.engine.requests.claims import Progress, Requests
from asgi_durable.engine.requests.progress import CANCELLED
from asgi_durable.engine.requests.request_ids import RequestIds, is_former_request_of
from asgi_durable.errors import DurableError, WorkflowNotFoundError
from asgi_durable.fast_dataclass import fast_dataclass
from asgi_durable.ids import REQUEST_ID_PATTERN
from asgi_durable.middleware.asgi import Headers, Scope, route_path
from asgi_durable.middleware.connection import Connection
from asgi_durable.middleware.keys.principal import Senders
from asgi_durable.middleware.problem_details import send_problem
from asgi_durable.middleware.responses.durable_streams import (
    is_catch_up,
    send_catch_up,
    stream_end_headers,
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

__all__ = ["StatusPage", "StatusPages", "accepted_response"]

_REQUEST_ID = re.compile(REQUEST_ID_PATTERN)


@fast_dataclass()
class StatusPage:
    """A page of one request.

    Attributes:
        workflow_id: Id of the request's workflow.
        is_result: True for the page with its response, False for the page with its status.
    """

    workflow_id: str
    is_result: bool


class StatusPages:
    """Serves ``GET prefix/ID`` and ``GET prefix/ID/result`` to the sender of the request.

    Not an app of Starlette's routes: those handle errors with the handlers of an application
    around this one.

    Args:
        prefix: A path without a slash at its end.
        may_cancel: True to serve ``DELETE prefix/ID`` as well.

    Attributes:
        methods: The HTTP methods that pages have.
    """

    def __init__(self, prefix: str, *, may_cancel: bool = False) -> None:
        self._prefix = prefix
        self._status_path = compile_path(f"{prefix}/{{workflow_id}}")[0]
        self._result_path = compile_path(f"{prefix}/{{workflow_id}}/result")[0]
        self.methods = frozenset({"GET", "HEAD", "DELETE"} if may_cancel else {"GET", "HEAD"})

    def find(self, scope: Scope) -> StatusPage | None:
        """Return the page that a request is for, ``None`` if it is for the app."""
        path = route_path(scope)
        if not path.startswith(self._prefix) or scope["method"] not in self.methods:
            return None
        found = self._status_path.fullmatch(path)
        is_result = found is None and scope["method"] != "DELETE"
        if is_result:
            found = self._result_path.fullmatch(path)
        if found is None or not _REQUEST_ID.fullmatch(found["workflow_id"]):
            return None
        return StatusPage(found["workflow_id"], is_result)

    def location(self, scope: Scope, workflow_id: str) -> tuple[bytes, bytes]:
        """Return the ``Location`` header with the URL of a request's status."""
        mounted_at = quote(scope.get("root_path", "").rstrip("/"))
        return (b"location", f"{mounted_at}{self._prefix}/{workflow_id}".encode("ascii"))

    async def serve(
        self, connection: Connection, page: StatusPage, senders: Senders, requests: Requests
    ) -> None:
        """Send a page. Another sender's request is not found, whether it exists or not.

        Raises:
            PrincipalUnavailableError: The sender of this request cannot be identified.
            WorkflowNotFoundError: This sender has no such request.
            DurableError: An offset of the request's stream is malformed, or not valid any more.
            RequestFinishedError: The request is finished, so it cannot be cancelled.
            ResponseDamagedError: The recorded response is damaged.
            EncryptionKeyMissingError: This process lacks the key of the recorded response.
            StorageError: The storage failed.
        """
        scope, workflow_id = connection.scope, page.workflow_id
        if not _is_request_of(senders, scope, workflow_id, requests.ids):
            raise WorkflowNotFoundError(workflow_id)
        if scope["method"] == "DELETE":
            response = await _cancel(workflow_id, requests)
        else:
            progress = await requests.progress(workflow_id)
            if progress is None:
                raise WorkflowNotFoundError(workflow_id)
            location = self.location(scope, workflow_id)
            if page.is_result:
                await _send_result(connection, requests, workflow_id, progress, location)
                return
            response = _status_response(workflow_id, progress, location)
        await response(scope, connection.receive, connection.send)


def accepted_response(
    workflow_id: str, headers: Headers, *, sleeps_until_us: int | None
) -> Response:
    """Return the response 202 to a request that continues without its client.

    Args:
        workflow_id: Id of the request's workflow.
        headers: Further headers, for example the URL of the status page.
        sleeps_until_us: The time until which the request sleeps, if it sleeps; microseconds
            since 1970, UTC.

    Source:
        RFC 7240, section 4.1.
    """
    state = "RUNNING" if sleeps_until_us is None else "SUSPENDED"
    content = {"id": workflow_id, "state": state}
    seconds = whole_seconds_until(sleeps_until_us or 0)
    return _json_response(202, content, headers, retry_after_seconds=seconds)


def _is_request_of(senders: Senders, scope: Scope, workflow_id: str, ids: RequestIds) -> bool:
    sender = senders.sender_of(scope)
    if ids.is_request_of(sender.scope, workflow_id):
        return True
    former = senders.former_principal(scope, sender) if ids.may_be_former else None
    return former is not None and is_former_request_of(former, workflow_id)


async def _cancel(workflow_id: str, requests: Requests) -> Response:
    if not await requests.cancel(workflow_id):
        msg = "the request is finished; it cannot be cancelled any more"
        raise RequestFinishedError(msg)
    return Response(status_code=204)


def _status_response(
    workflow_id: str, progress: Progress, location: tuple[bytes, bytes]
) -> Response:
    content = {
        "id": workflow_id,
        "state": progress.state,
        "steps": progress.steps,
        "attempts": progress.attempts,
    }
    if progress.response is not None:
        name, url = location
        return _json_response(303, content, [(name, url + b"/result")])
    seconds = None if progress.state == CANCELLED else progress.retry_after_seconds
    return _json_response(200, content, [], retry_after_seconds=seconds)


def _json_response(
    status: int,
    content: Mapping[str, object],
    headers: Headers,
    *,
    retry_after_seconds: int | None = None,
) -> Response:
    if retry_after_seconds is not None:
        content = {**content, "retry_after": retry_after_seconds}
        headers = [*headers, (b"retry-after", b"%d" % retry_after_seconds)]
    # `JSONResponse` would write other bytes than these documents always had.
    response = Response(
        json.dumps(content),
        status,
        headers={"cache-control": "no-store"},
        media_type="application/json",
    )
    response.raw_headers += headers
    return response


async def _send_result(
    connection: Connection,
    requests: Requests,
    workflow_id: str,
    progress: Progress,
    location: tuple[bytes, bytes],
) -> None:
    scope, send = connection.scope, connection.send
    stored = StoredResponse(workflow_id, progress.created_at_us, progress.response)
    if await _send_recorded_stream(connection, requests, stored, progress.state):
        return
    if progress.response is None:
        members = {"instance": location[1].decode("ascii"), "run": progress.attempts}
        await send_problem(send, _no_result(progress), headers=[location], members=members)
        return
    response = requests.opened(progress.response)
    restore_session(scope, response.headers)
    await send_stored_response(send, response, _response_headers(stored))


async def _send_recorded_stream(
    connection: Connection, requests: Requests, stored: StoredResponse, state: str
) -> bool:
    """Send a recorded stream, or the requested part of it; return False if there is none.

    Raises:
        DurableError: See ``StatusPages.serve``.
    """
    if stored.response is not None and stored.stream_end is None:
        return False
    streams, headers = requests.streams, _response_headers(stored)
    if is_catch_up(connection.scope):
        if state == CANCELLED:
            # A client that reads part by part would wait for the end for ever.
            return False
        if await send_catch_up(connection.scope, connection.send, streams, stored, headers):
            return True
    if stored.response is None and not streams.may_follow(stored.workflow_id):
        return False
    return await send_stream(connection, streams, stored, [*headers, *stream_end_headers(stored)])


def _response_headers(stored: StoredResponse) -> Headers:
    return [(b"durable-id", stored.workflow_id.encode())]


def _no_result(progress: Progress) -> DurableError:
    if progress.state == CANCELLED:
        return RequestCancelledError("the request was cancelled")
    error = RequestInProgressError("the request is not finished; try again later")
    error.retry_after_seconds = progress.retry_after_seconds
    return error
