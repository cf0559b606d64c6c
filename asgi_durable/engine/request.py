"""One try of a request."""

from __future__ import annotations

from dataclasses import dataclass

from asgi_durable.engine.retention import Retention

__all__ = ["Request"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One try of a request.

    Attributes:
        workflow_id: Made of the key and its scope.
        name: What the request is, for people.
        fingerprint: Equal for retries of one request, different for any other; or what stands
            for it until the whole body is there (``storage.records.PENDING_FINGERPRINT``).
        request_id: Of this try.
        retention: For how long its answer is kept.
    """

    workflow_id: str
    name: str
    fingerprint: str
    request_id: str
    retention: Retention = Retention()  # noqa: RUF009  frozen
