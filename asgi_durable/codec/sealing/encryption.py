"""Authenticated encryption of recorded bytes, with keys that can be replaced.

Format: version (1 byte), form of the plain bytes (1), key id (4), salt (24), then AES-256-GCM's
ciphertext and tag (16). Everything in front of the ciphertext, and what the bytes are recorded as,
is authenticated as associated data.

Each record has a key of its own, derived from the configured key and a random salt of 192 bits.
AES-GCM alone, with random nonces of 96 bits, is safe for 2**32 messages under one key only, which
a busy service reaches in weeks; here a salt would have to repeat, which 2**80 records do not bring
about. As a record's key encrypts one message, its nonce is constant.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Protocol

from asgi_durable.errors import DecodeError, DurableUsageError, EncryptionKeyMissingError

__all__ = ["DiskCipher", "EncryptionKey", "Keyring", "key_id_of", "missing_key"]

_VERSION = b"\x01"
_ID_BYTES, _SALT_BYTES, _TAG_BYTES = 4, 24, 16
_SALT_AT = 2 + _ID_BYTES
_HEADER_BYTES = _SALT_AT + _SALT_BYTES
_NONCE = bytes(12)
# Imported only where there are keys.
_CIPHERS = "cryptography.hazmat.primitives.ciphers"
_MISSING = (
    "Payloads(encryption_keys=…) needs the library cryptography: "
    "pip install 'asgi-durable[encryption]'"
)


class EncryptionKey:
    """One configured key, and what is derived from it for each use.

    Attributes:
        id: Names the key in records and messages; it tells nothing of the key.
        digest_key: For digests of what must not be guessed from them.
    """

    __slots__ = ("_record_key", "digest_key", "id")

    def __init__(self, key: bytes) -> None:
        self.id = _derived(key, b"key id")[:_ID_BYTES]
        self.digest_key = _derived(key, b"digests")
        self._record_key = _derived(key, b"records")

    def for_record(self, salt: bytes) -> bytes:
        """Return the key of the record with a salt."""
        return hmac.digest(self._record_key, salt, "sha256")


class DiskCipher(Protocol):
    """Encrypts what is written into one temporary file, and decrypts it in the same order."""

    def encrypt(self, data: bytes) -> bytes:
        """Return the next bytes as they are written."""

    def decrypt(self, data: bytes) -> bytes:
        """Return the next bytes that were written."""


class Keyring:
    """Encrypts with the first key, and decrypts with the key that a record names.

    Args:
        keys: The configured keys, at least one.

    Raises:
        DurableUsageError: The library ``cryptography`` is not installed.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        try:
            self._cipher: Any = import_module(f"{_CIPHERS}.aead").AESGCM
        except ImportError:
            raise DurableUsageError(_MISSING) from None
        self._wrong: Any = import_module("cryptography.exceptions").InvalidTag
        self.keys = tuple(map(EncryptionKey, keys))
        self._by_id = {key.id: key for key in self.keys}

    def encrypt(self, form: bytes, data: bytes, purpose: bytes) -> bytes:
        """Return bytes encrypted.

        Args:
            form: One byte that :meth:`decrypt` gives back.
            data: The bytes.
            purpose: The kind of record; only the same kind decrypts them.
        """
        key, salt = self.keys[0], os.urandom(_SALT_BYTES)
        header = _VERSION + form + key.id + salt
        cipher = self._cipher(key.for_record(salt))
        return header + bytes(cipher.encrypt(_NONCE, data, header + purpose))

    def decrypt(self, data: bytes, purpose: bytes) -> tuple[bytes, bytes]:
        """Return the form and the bytes that :meth:`encrypt` was given.

        Raises:
            EncryptionKeyMissingError: They are encrypted with another key.
            DecodeError: They are damaged.
        """
        if len(data) < _HEADER_BYTES + _TAG_BYTES:
            msg = "a recorded value is damaged: its encrypted form is cut off"
            raise DecodeError(msg)
        if data[:1] != _VERSION:
            msg = "a recorded value is encrypted in a way that this version does not know"
            raise DecodeError(msg)
        header = data[:_HEADER_BYTES]
        key = self._by_id.get(header[2:_SALT_AT])
        if key is None:
            raise missing_key(key_id_of(data), self.keys)
        cipher = self._cipher(key.for_record(header[_SALT_AT:]))
        try:
            plain = cipher.decrypt(_NONCE, data[_HEADER_BYTES:], header + purpose)
        except self._wrong:
            msg = f"a recorded value is damaged: it does not fit its key {key.id.hex()}"
            raise DecodeError(msg) from None
        return header[1:2], bytes(plain)

    def disk_cipher(self) -> DiskCipher:
        """Return a cipher for one temporary file, with a key that is stored nowhere else."""
        return _Counter()


class _Counter:
    """AES-256 in counter mode under a random key: bytes of a file in any portions."""

    def __init__(self) -> None:
        aes: Any = import_module(f"{_CIPHERS}.algorithms").AES256
        mode: Any = import_module(f"{_CIPHERS}.modes").CTR
        cipher: Any = import_module(_CIPHERS).Cipher(aes(os.urandom(32)), mode(bytes(16)))
        self.encrypt: Callable[[bytes], bytes] = cipher.encryptor().update
        self.decrypt: Callable[[bytes], bytes] = cipher.decryptor().update


def key_id_of(data: bytes) -> str:
    """Return the id of the key that bytes were encrypted with."""
    return data[2:_SALT_AT].hex()


def missing_key(key_id: str, keys: Sequence[EncryptionKey] = ()) -> EncryptionKeyMissingError:
    """Return the error of what is encrypted, or digested, with a key that is not here."""
    known = ", ".join(key.id.hex() for key in keys) or "none"
    return EncryptionKeyMissingError(
        f"a recorded value needs the encryption key with the id {key_id}, which is not among "
        f"Durable(payloads=Payloads(encryption_keys=[…])); ids of the keys there: {known}"
    )


def _derived(key: bytes, use: bytes) -> bytes:
    return hmac.digest(key, b"asgi-durable v1 " + use, "sha256")
