"""Where a request's id comes from, and which ids are accepted."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from asgi_durable.errors import DurableError, DurableUsageError, RequestIdInvalidError
from asgi_durable.ids import new_id
from asgi_durable.middleware.asgi import TOKEN
from asgi_durable.request_errors import PolicyFailedError

__all__ = ["RequestIdPolicy", "RequestIds", "checked_header_names"]

_CHOICES = {"source": ("header", "trace"), "on_invalid": ("replace", "reject")}
# On bytes, so that only ASCII matches; no such id can break a header or a log line.
_VALID = re.compile(rb"[A-Za-z0-9._~+/=:@-]{1,128}")
# A validator sees no other value.
_SAFE = re.compile(rb"[\x21-\x7e]{1,128}")
# The place of the trace id in a traceparent of version 00.
_TRACE_ID = slice(3, 35)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestIdPolicy:
    """Where a request's id comes from, and which ids are accepted.

    Attributes:
        source: ``"header"`` takes the id from a header of the request. ``"trace"`` takes the
            trace id of the request's ``traceparent``, 32 hexadecimal digits, and falls back to
            the headers where there is none.
        on_invalid: Says how to treat a request that sends ids none of which is accepted:
            ``"replace"`` gives it a new id, ``"reject"`` responds 400 and refuses a WebSocket.
        validator: Returns whether an id is accepted. By default an id is if it matches
            ``[A-Za-z0-9._~+/=:@-]{1,128}``. The function is only called with 1 to 128 visible
            ASCII characters; other values are never accepted.
        generator: Makes a new id, 1 to 128 visible ASCII characters; a UUID version 7 by
            default.

    Raises:
        DurableUsageError: ``source`` or ``on_invalid`` is an unknown word, or one of the
            functions is async or not callable.

    Example:
        ``RequestIdPolicy(source="trace", on_invalid="reject")``
    """

    source: Literal["header", "trace"] = "header"
    on_invalid: Literal["replace", "reject"] = "replace"
    validator: Callable[[str], bool] | None = None
    generator: Callable[[], str] = new_id

    def __post_init__(self) -> None:
        """Refuse unknown words and async functions."""
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                msg = f"{name} is one of {', '.join(choices)}; got {getattr(self, name)!r}"
                raise DurableUsageError(msg)
        for name in ("validator", "generator"):
            function = getattr(self, name)
            is_missing = function is None and name == "validator"
            if not is_missing and not _is_plain_function(function):
                msg = f"{name} is a function that is not async, got {function!r}"
                raise DurableUsageError(msg)


def checked_header_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the headers that an id is read from.

    Raises:
        ValueError: The sequence is empty.
        DurableUsageError: It is a string, or has an entry that is not the name of a header.
    """
    if not names:
        msg = "header_names must name at least one header"
        raise ValueError(msg)
    if isinstance(names, str):
        msg = f"the headers of a request id are several strings, as in [{names!r}]; got one"
        raise DurableUsageError(msg)
    for name in names:
        if not isinstance(name, str) or TOKEN.fullmatch(name) is None:
            msg = f"a request id is read from a header, got the name {name!r}"
            raise DurableUsageError(msg)
    return tuple(names)


class RequestIds:
    """Finds or makes the id of each request.

    Args:
        header_names: Headers that the id is read from; the first accepted value counts.
        policy: Says which ids are accepted, and how new ones are made.

    Attributes:
        read_names: The names of the headers in lower case.
    """

    def __init__(self, header_names: Sequence[str], policy: RequestIdPolicy) -> None:
        self.read_names = [name.lower().encode("ascii") for name in header_names]
        self._displayed_names = " or ".join(header_names)
        self._from_trace = policy.source == "trace"
        self._rejects = policy.on_invalid == "reject"
        self._accepts: Callable[[bytes], object] = _VALID.fullmatch
        if policy.validator is not None:
            self._accepts = partial(_validated, policy.validator)
        self._generator = policy.generator

    def find(self, found: Mapping[bytes, list[bytes]], traceparent: str | None) -> str:
        """Return the id of a request.

        Args:
            found: The values of the request's headers, by names in lower case.
            traceparent: Its valid traceparent, as ``parse_traceparent`` returns it.

        Raises:
            RequestIdInvalidError: No id in the headers is accepted, and the policy rejects such
                requests.
            PolicyFailedError: A function of the policy failed.
        """
        if self._from_trace and traceparent is not None:
            return traceparent[_TRACE_ID]
        is_sent = False
        for name in self.read_names:
            for value in found.get(name, ()):
                is_sent = True
                if self._accepts(value):
                    return value.decode("ascii")
        if is_sent and self._rejects:
            msg = f"the request id in {self._displayed_names} is not accepted"
            raise RequestIdInvalidError(msg)
        return self.new()

    def new(self) -> str:
        """Return a new id.

        Raises:
            PolicyFailedError: The policy's generator failed, or made no valid id.
        """
        if self._generator is new_id:
            return new_id()
        try:
            made = self._generator()
            is_safe = _SAFE.fullmatch(made.encode()) is not None
        except DurableError:
            raise
        except Exception as error:
            raise PolicyFailedError.of(error, "generator") from error
        if not is_safe:
            msg = f"generator returned {made!r}, not 1 to 128 visible ASCII characters"
            raise PolicyFailedError(msg)
        return made


def _validated(validator: Callable[[str], bool], value: bytes) -> bool:
    if _SAFE.fullmatch(value) is None:
        return False
    try:
        return bool(validator(value.decode("ascii")))
    except DurableError:
        raise
    except Exception as error:
        raise PolicyFailedError.of(error, "validator") from error


def _is_plain_function(function: object) -> bool:
    if not callable(function):
        return False
    # A callable object may have an async `__call__`.
    is_async = map(inspect.iscoroutinefunction, (function, type(function).__call__))
    return not any(is_async)
