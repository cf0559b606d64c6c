"""Sources of a request's key: a header, its JSON body, its path, or a function."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from asgi_durable.errors import DurableError, DurableUsageError
from asgi_durable.middleware.asgi import TOKEN, Scope, header_values
from asgi_durable.middleware.fingerprints.body_meaning import (
    MAX_BYTES_ON_LOOP,
    canonical_encoding,
    unpacked,
)
from asgi_durable.middleware.fingerprints.canonical_json import RepeatedNameError, read_keys_json
from asgi_durable.middleware.fingerprints.json_members import JsonPointer
from asgi_durable.middleware.policy_functions import call_function
from asgi_durable.middleware.request_bodies.threads import run_in_thread
from asgi_durable.request_errors import KeyMalformedError, PolicyFailedError

__all__ = [
    "DEFAULT_HEADER",
    "MAX_KEY_BYTES",
    "BodyUnreadableError",
    "HeaderKey",
    "KeyFunction",
    "KeySource",
    "ParameterFinder",
    "PathKey",
    "idempotency_key",
    "key_source",
]

DEFAULT_HEADER = "Idempotency-Key"
MAX_KEY_BYTES = 255
_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
# RFC 9651, section 3.3.3, with parameters, which are ignored. Not a library for these: bare keys
# are no structured fields, and most clients send them.
_QUOTED = re.compile(rb'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"(?: *;[\x20-\x7e]*)?')
_ESCAPED = re.compile(rb'\\(["\\])')
_BARE = re.compile(rb"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]+")
_VISIBLE = re.compile(r"[\x20-\x7e]+")

KeyFunction = Callable[[Scope, bytes], str | Awaitable[str | None] | None]
# Returns the parameters of the route that a request is for.
ParameterFinder = Callable[[Scope], Mapping[str, Any]]


class BodyUnreadableError(Exception):
    """The body cannot be read, so it may have a key or not."""


class KeySource(ABC):
    """A place in which requests have their keys.

    Attributes:
        place: Its name in messages.
        header: The header's name in lower case; ``None`` if the place is not a header.
        needs_body: True if the whole body has to be read first.
    """

    def __init__(
        self, place: str, *, header: bytes | None = None, needs_body: bool = False
    ) -> None:
        self.place = place
        self.header = header
        self.needs_body = needs_body

    @abstractmethod
    async def find(self, scope: Scope, body: bytes, parameters: ParameterFinder) -> bytes | None:
        """Return a request's key of 1 to 255 bytes, ``None`` if it has none.

        Args:
            scope: An HTTP scope.
            body: The whole body; any bytes if ``needs_body`` is False.
            parameters: Returns the path's parameters.

        Raises:
            KeyMalformedError: The value in this place is not a legal key.
            PolicyFailedError: The policy's function failed.
            BodyUnreadableError: The body cannot be read.
        """


def key_source(key: str | KeyFunction | None, header_name: str | None) -> KeySource:
    """Return the source that a policy names.

    Args:
        key: A header's name, a JSON pointer, a path parameter as in ``"{event_id}"``, or a
            function.
        header_name: The former way to name a header.

    Raises:
        DurableUsageError: *key* is none of these, or both arguments are set.
    """
    if key is not None and header_name is not None:
        msg = "key= takes the place of header_name=: give one of them"
        raise DurableUsageError(msg)
    if key is None:
        return HeaderKey(header_name if header_name is not None else DEFAULT_HEADER)
    if callable(key):
        return _FunctionKey(key)
    if isinstance(key, str) and (source := _named_source(key)) is not None:
        return source
    msg = (
        "key is a header's name, a JSON pointer such as '/id', a path parameter such as "
        f"'{{event_id}}', or a function, got {key!r}"
    )
    raise DurableUsageError(msg)


def _named_source(key: str) -> KeySource | None:
    if key.startswith("/"):
        try:
            return _MemberKey(JsonPointer(key))
        except ValueError:
            return None
    if found := _PARAMETER.fullmatch(key):
        return PathKey(found[1])
    is_header = TOKEN.fullmatch(key) and not key.startswith("{")
    return HeaderKey(key) if is_header else None


class HeaderKey(KeySource):
    """A key in a header. A quoted key and the same one without quotes are equal.

    Args:
        name: The header's name.

    Attributes:
        name: The header's name as it was passed.

    Raises:
        DurableUsageError: The name is not legal for a header.

    Source:
        draft-ietf-httpapi-idempotency-key-header-07, section 2.1; bare keys are what most
        clients send.
    """

    def __init__(self, name: str) -> None:
        if not TOKEN.fullmatch(name):
            msg = f"{name!r} is not the name of a header"
            raise DurableUsageError(msg)
        self.name = name
        self._lower = name.lower().encode("ascii")
        super().__init__(f"the header {name}", header=self._lower)

    async def find(self, scope: Scope, _body: bytes, _parameters: ParameterFinder) -> bytes | None:
        """Return a request's key; see ``KeySource``."""
        return idempotency_key(scope, self._lower)


def idempotency_key(scope: Scope, header_name: bytes) -> bytes | None:
    """Return the key in a header, ``None`` if the header is missing.

    Args:
        scope: An HTTP scope.
        header_name: The header's name in lower case.

    Raises:
        KeyMalformedError: The key is empty, too long, repeated or not legal.
    """
    lines = header_values(scope["headers"], header_name)
    if not lines:
        return None
    if len(lines) > 1:
        msg = "the header occurs more than once"
        raise KeyMalformedError(msg)
    value = lines[0].strip(b" \t")
    if value.startswith(b'"'):
        quoted = _QUOTED.fullmatch(value)
        key = _ESCAPED.sub(rb"\1", quoted[1]) if quoted else b""
    else:
        key = value if _BARE.fullmatch(value) else b""
    if not 1 <= len(key) <= MAX_KEY_BYTES:
        msg = (
            f"a key is 1 to {MAX_KEY_BYTES} visible ASCII characters, bare without "
            'quotes, commas, semicolons and backslashes, or a quoted string as in "8e03"'
        )
        raise KeyMalformedError(msg)
    return key


class PathKey(KeySource):
    """A key that is a parameter of the path.

    Args:
        parameter: The parameter's name.

    Attributes:
        parameter: The same name.
    """

    def __init__(self, parameter: str) -> None:
        self.parameter = parameter
        super().__init__(f"the path parameter {parameter}")

    async def find(self, scope: Scope, _body: bytes, parameters: ParameterFinder) -> bytes | None:
        """Return a request's key; see ``KeySource``."""
        value = parameters(scope).get(self.parameter)
        return None if value is None else _checked(str(value), self.place)


class _MemberKey(KeySource):
    """A key in a JSON body: a string or a whole number."""

    def __init__(self, pointer: JsonPointer) -> None:
        self._pointer = pointer
        super().__init__(f"the member {pointer.text} of its JSON body", needs_body=True)

    async def find(self, scope: Scope, body: bytes, _parameters: ParameterFinder) -> bytes | None:
        """Return a request's key; see ``KeySource``."""
        encoding = canonical_encoding(
            b",".join(header_values(scope["headers"], b"content-encoding"))
        )
        if encoding or len(body) > MAX_BYTES_ON_LOOP:
            return await run_in_thread(self._key_in, encoding, body)
        return self._key_in(encoding, body)

    def _key_in(self, encoding: bytes, body: bytes) -> bytes | None:
        plain = unpacked(body, encoding)
        if plain is None:
            raise BodyUnreadableError
        try:
            value = self._pointer.find(read_keys_json(plain))
        except RepeatedNameError as error:
            msg = f"a name is repeated in the JSON body, so {self.place} is not one value"
            raise KeyMalformedError(msg) from error
        except RecursionError as error:
            raise BodyUnreadableError from error
        except (ValueError, LookupError):
            return None
        if not isinstance(value, str):
            msg = f"{self.place} is neither a string nor a whole number"
            raise KeyMalformedError(msg)
        return _checked(value, self.place)


class _FunctionKey(KeySource):
    """A key that a function of the policy finds."""

    def __init__(self, function: KeyFunction) -> None:
        self._function = function
        super().__init__("what the policy's key= returns", needs_body=True)

    async def find(self, scope: Scope, body: bytes, _parameters: ParameterFinder) -> bytes | None:
        try:
            key: object = await call_function(self._function, scope, body)
            if key is None:
                return None
            if not isinstance(key, str):
                msg = f"a key is a string or None, got {type(key).__name__}"
                raise TypeError(msg)
        except DurableError:
            raise
        except Exception as error:
            raise PolicyFailedError.of(error, "key") from error
        return _checked(key, self.place)


def _checked(key: str, place: str) -> bytes:
    if len(key) > MAX_KEY_BYTES or not _VISIBLE.fullmatch(key):
        msg = f"a key is 1 to {MAX_KEY_BYTES} visible ASCII characters; {place} is not"
        raise KeyMalformedError(msg)
    return key.encode("ascii")
