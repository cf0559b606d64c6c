"""Redirects of requests to other paths, stored beside the requests that they lead to.

A redirect that asks for the same request elsewhere leaves its key free: the request at the other
path takes it. A client that sends the first request again gets the stored redirect.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace

from asgi_durable.engine.process.settings import Retention
from asgi_durable.engine.requests.sealed_responses import sealed_response
from asgi_durable.engine.runs.run import Run
from asgi_durable.ids import KEY_CHARACTERS, PRINCIPAL_CHARACTERS
from asgi_durable.storage.protocol import StepLog
from asgi_durable.storage.records import ResponseRecord, WorkflowState, is_pending
from asgi_durable.storage.writes import FinishWorkflow, StartWorkflow, Write

__all__ = ["find_redirect", "redirect_writes"]

# The request that a redirect leads to is finished later, and its retention begins then.
_STORED_LONGER_SECONDS = 24 * 3600.0


def redirect_writes(
    run: Run, status_code: int, headers: bytes, body: bytes | None, retention: Retention
) -> list[Write]:
    """Return the writes that store a redirect; none if the request's fingerprint is not known.

    If the redirect is stored already, the first write is refused and the second changes nothing.

    Args:
        run: The run of the redirected request.
        status_code: The redirect's status.
        headers: Its headers, encoded.
        body: Its body.
        retention: The retention of the request.
    """
    fingerprint = run.workflow.fingerprint
    if fingerprint is None or is_pending(fingerprint):
        return []
    redirect_id = _redirect_id(run.workflow_id, fingerprint)
    now_us = time.time_ns() // 1000
    expires_at_us, _ = replace(retention, tombstone_seconds=0.0).ends_of(
        now_us + round(_STORED_LONGER_SECONDS * 1_000_000)
    )
    response = ResponseRecord(
        workflow_id=redirect_id,
        status_code=status_code,
        headers=headers,
        body=body,
        expires_at_us=expires_at_us,
        forgotten_at_us=expires_at_us,
        stream_end=None,
    )
    sealed = sealed_response(run.services.registry.sealer, response)
    row = replace(
        run.workflow,
        workflow_id=redirect_id,
        executor_id=run.executor_id,
        attempts=1,
        input=None,
        created_at_us=now_us,
        updated_at_us=now_us,
        retry_at_us=None,
    )
    end = FinishWorkflow(
        workflow_id=redirect_id,
        executor_id=run.executor_id,
        state=WorkflowState.SUCCESS,
        output=None,
        error=None,
        finished_at_us=now_us,
        response=sealed,
    )
    return [StartWorkflow(row), end]


async def find_redirect(
    storage: StepLog, workflow_id: str, fingerprints: Sequence[str]
) -> ResponseRecord | None:
    """Return the redirect that a request got, ``None`` if it did not get one.

    Args:
        storage: The step log.
        workflow_id: The workflow id of the key.
        fingerprints: The fingerprints that may be recorded for the request.

    Raises:
        StorageError: The storage failed.
    """
    now_us = time.time_ns() // 1000
    for fingerprint in dict.fromkeys(fingerprints):
        response = await storage.get_response(_redirect_id(workflow_id, fingerprint))
        if response is not None and response.is_replayable_at(now_us):
            return response
    return None


def _redirect_id(workflow_id: str, fingerprint: str) -> str:
    """Return an id of the same sender that no key has."""
    digest = hashlib.sha256(f"asgi-durable redirect {workflow_id} {fingerprint}".encode()).digest()
    key_part = base64.b32encode(digest).decode("ascii").lower()[:KEY_CHARACTERS]
    return workflow_id[:PRINCIPAL_CHARACTERS] + key_part
