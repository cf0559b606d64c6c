"""Size limit, compression and encryption of recorded values."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

from asgi_durable.errors import DurableUsageError

__all__ = ["DEFAULT_MAX_SIZE", "Payloads"]

DEFAULT_MAX_SIZE = 16 * 1024 * 1024
KEY_BYTES = 32
_HOW_TO = "make one with `openssl rand -base64 32`"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Payloads:
    """Size limit, compression and encryption of recorded values.

    Args:
        max_size: Greatest size in bytes of a step's result, and of a workflow's input and result,
            before compression. A larger one raises a ``PayloadTooLargeError``. Responses and
            request bodies have limits of their own, see ``IdempotencyPolicy``.
        compress_from: Smallest size in bytes of a value, a response or a chunk of a stream that
            is compressed, if that makes it smaller; ``None`` for no compression. It uses zstd if
            Python has it (3.14), or if ``backports.zstd`` or ``zstandard`` is installed, and
            zlib otherwise.
        encryption_keys: Keys of 32 random bytes, each as bytes or as base64 text. The first key
            encrypts, all of them decrypt, so put a new key in front of the old ones. Needs the
            extra ``encryption``.

    Raises:
        DurableUsageError: A size is not positive, or a key is not 32 bytes long.

    Example:
        Make a key with ``openssl rand -base64 32`` and store it with your other secrets::

            Payloads(encryption_keys=os.environ["PAYLOAD_KEYS"].split())
    """

    max_size: int = DEFAULT_MAX_SIZE
    compress_from: int | None = None
    encryption_keys: Sequence[bytes | str] = ()

    def __post_init__(self) -> None:
        """Check the settings, and decode the keys."""
        _require_size("max_size", self.max_size)
        if self.compress_from is not None:
            _require_size("compress_from", self.compress_from)
        object.__setattr__(self, "encryption_keys", _decoded_keys(self.encryption_keys))

    def __repr__(self) -> str:
        """Show the settings, but no key."""
        keys = f"<{len(self.encryption_keys)} not shown>" if self.encryption_keys else "()"
        return (
            f"Payloads(max_size={self.max_size}, compress_from={self.compress_from}, "
            f"encryption_keys={keys})"
        )


def _require_size(name: str, size: object) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        msg = f"Payloads({name}=…) must be a whole number of bytes, at least 1, got {size!r}"
        raise DurableUsageError(msg)


def _decoded_keys(keys: object) -> tuple[bytes, ...]:
    if isinstance(keys, (str, bytes, bytearray)) or not isinstance(keys, Sequence):
        msg = "Payloads(encryption_keys=…) must be a list of keys, also where there is one"
        raise DurableUsageError(msg)
    decoded = tuple(_decoded_key(key, place) for place, key in enumerate(keys))
    if len(set(decoded)) != len(decoded):
        msg = "Payloads(encryption_keys=…) has the same key twice"
        raise DurableUsageError(msg)
    return decoded


def _decoded_key(key: object, place: int) -> bytes:
    """Return the bytes of a key; no error message shows any part of it."""
    name = f"Payloads(encryption_keys=…): key {place} (counted from 0)"
    if isinstance(key, bytes) and len(key) == KEY_BYTES:
        return key
    if not isinstance(key, (str, bytes)):
        msg = f"{name} is {type(key).__name__}, not bytes or base64 text; {_HOW_TO}"
        raise DurableUsageError(msg)
    try:
        decoded = _from_base64(key)
    except (binascii.Error, UnicodeEncodeError):
        msg = f"{name} is neither {KEY_BYTES} bytes nor base64 of them; {_HOW_TO}"
        raise DurableUsageError(msg) from None
    if len(decoded) != KEY_BYTES:
        msg = f"{name} is base64 of {len(decoded)} bytes instead of {KEY_BYTES}; {_HOW_TO}"
        raise DurableUsageError(msg)
    return decoded


def _from_base64(key: str | bytes) -> bytes:
    text = key.encode("ascii") if isinstance(key, str) else key
    # Tools differ: accept both base64 alphabets, with and without padding.
    text = text.strip().translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
