"""Prepares encoded bytes for the record: size limit, compression, encryption.

Encoded values never begin with a letter and a colon, so the first two bytes say how they were
sealed: ``z:`` zlib, ``s:`` zstd, ``e:`` encrypted. Bodies, chunks and the like may begin with any
bytes, and have a marker in front of these two; without the marker they are not sealed.
"""

from __future__ import annotations

from asgi_durable.codec.sealing.compression import ZLIB, ZSTD, Compression
from asgi_durable.codec.sealing.encryption import DiskCipher, Keyring, key_id_of, missing_key
from asgi_durable.codec.sealing.keyed_fingerprints import KeyedFingerprints
from asgi_durable.errors import PayloadTooLargeError
from asgi_durable.payloads import Payloads

__all__ = ["BODY", "ERROR", "HEADERS", "PIECE", "REQUEST", "VALUE", "Sealer"]

# Kinds of records: bytes that are encrypted as one of them do not decrypt as another.
VALUE, ERROR, REQUEST = b"value", b"error", b"request"
HEADERS, BODY, PIECE = b"response headers", b"response body", b"piece"

# No text begins with it.
_MARKER = b"\xffdurable"
_AS_IS, _PLAIN = b"p", b"-"
_SEALED = frozenset({b"z:", b"s:", b"e:"})
# Records that were written under a larger limit can be read up to this size.
_LONGEST_BYTES = 64 * 1024 * 1024


class Sealer:
    """Seals and opens recorded bytes.

    Plain records, written before compression or encryption was switched on, are opened as well.

    Args:
        payloads: The settings.

    Attributes:
        max_size: Bytes that a value has at most.
        as_it_is_up_to: Bytes up to which :meth:`seal` returns a value as it is given.
        fingerprints: Makes keyed fingerprints of requests, where there are encryption keys.

    Raises:
        DurableUsageError: There are encryption keys, and no library for them.
    """

    def __init__(self, payloads: Payloads) -> None:
        keys = [key for key in payloads.encryption_keys if isinstance(key, bytes)]
        self.max_size = payloads.max_size
        self._longest = max(payloads.max_size, _LONGEST_BYTES)
        self._compress_from = payloads.compress_from
        self._compression = Compression()
        self._keyring = Keyring(keys) if keys else None
        self._is_plain = self._keyring is None and self._compress_from is None
        self.as_it_is_up_to = payloads.max_size if self._is_plain else -1
        self.fingerprints = KeyedFingerprints(self._keyring.keys if self._keyring else ())

    @property
    def encrypts(self) -> bool:
        """True if there are encryption keys."""
        return self._keyring is not None

    def seal(self, data: bytes, purpose: bytes = VALUE) -> bytes:
        """Return an encoded value as it is recorded.

        Invariant: called once for each record, where it is made. A commit that is tried again
        recognises its own rows by equal bytes, and sealing the same bytes again gives others.

        Args:
            data: The value, in a form that does not begin with a letter and a colon which mean
                something here.
            purpose: The kind of record.

        Raises:
            PayloadTooLargeError: It is larger than the limit. An error never is, as it must be
                recorded: its encoder leaves out the parts that do not fit.
        """
        if len(data) > self.max_size and purpose is not ERROR:
            msg = (
                f"it takes {len(data)} bytes, and at most {self.max_size} are recorded; store "
                "large data elsewhere and record where it is, or raise "
                "Durable(payloads=Payloads(max_size=…))"
            )
            raise PayloadTooLargeError(msg)
        return data if self._is_plain else self._sealed(data, purpose, may_compress=True)

    def seal_any_size(self, data: bytes) -> bytes:
        """Return an encoded value as it is recorded, whatever its size; see :meth:`seal`."""
        return data if self._is_plain else self._sealed(data, VALUE, may_compress=True)

    def open(self, data: bytes, purpose: bytes = VALUE) -> bytes:
        """Return the encoded value that :meth:`seal` was given.

        Raises:
            EncryptionKeyMissingError: It is encrypted with a key that is not here.
            DecodeError: It is damaged, or cannot be read in this process.
        """
        return self._opened(data, purpose) if data[:2] in _SEALED else data

    def seal_bytes(self, data: bytes, purpose: bytes, *, may_compress: bool = True) -> bytes:
        """Return bytes of any kind as they are recorded; see :meth:`seal`.

        Args:
            data: The bytes.
            purpose: The kind of record.
            may_compress: False where they are compressed already.
        """
        sealed = data if self._is_plain else self._sealed(data, purpose, may_compress=may_compress)
        if sealed is not data:
            return _MARKER + sealed
        return _MARKER + _AS_IS + b":" + data if data.startswith(_MARKER) else data

    def open_bytes(self, data: bytes, purpose: bytes) -> bytes:
        """Return the bytes that :meth:`seal_bytes` was given; see :meth:`open`.

        Raises:
            EncryptionKeyMissingError: They are encrypted with a key that is not here.
            DecodeError: They are damaged, or cannot be read in this process.
        """
        if not data.startswith(_MARKER):
            return data
        sealed = data[len(_MARKER) :]
        return sealed[2:] if sealed[:1] == _AS_IS else self._opened(sealed, purpose)

    def digest_keys(self) -> tuple[bytes, ...]:
        """Return the keys of digests of arguments, the first one for new ones; none if it is off.

        A digest without a key tells who has guessed what was digested that the guess is right.
        """
        return tuple(key.digest_key for key in self._keyring.keys) if self._keyring else ()

    def disk_cipher(self) -> DiskCipher | None:
        """Return what encrypts a temporary file; ``None`` where nothing is encrypted."""
        return self._keyring.disk_cipher() if self._keyring is not None else None

    def _sealed(self, data: bytes, purpose: bytes, *, may_compress: bool) -> bytes:
        form, content = _PLAIN, data
        least = self._compress_from
        if may_compress and least is not None and least <= len(data) <= self._longest:
            compressed = self._compression.compress(data)
            if len(compressed) < len(data):
                form, content = self._compression.form, compressed
        if self._keyring is not None:
            return b"e:" + self._keyring.encrypt(form, content, purpose)
        return data if form == _PLAIN else form + b":" + content

    def _opened(self, data: bytes, purpose: bytes) -> bytes:
        form, content = data[:1], data[2:]
        if form == b"e":
            if self._keyring is None:
                raise missing_key(key_id_of(content))
            form, content = self._keyring.decrypt(content, purpose)
        if form in (ZLIB, ZSTD):
            return self._compression.decompress(form, content, self._longest)
        return content
