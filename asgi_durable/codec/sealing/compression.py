"""Compression of recorded bytes: zstd where it is available, else zlib."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from typing import Any, TypeVar

from asgi_durable.errors import DecodeError

__all__ = ["ZLIB", "ZSTD", "Compression"]

T = TypeVar("T")

ZLIB, ZSTD = b"z", b"s"
# A commit waits for it: most of the gain for a fraction of the time of higher levels.
_ZLIB_LEVEL, _ZSTD_LEVEL = 1, 3
# Not tried one after the other: an application may have a module `compression` of its own.
_STANDARD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
_OTHER = "zstandard"


class Compression:
    """Compresses bytes in the best format that this process has, and reads all that it has."""

    @cached_property
    def _standard(self) -> Any:
        return _imported(_STANDARD)

    @cached_property
    def _other(self) -> Any:
        return _imported(_OTHER)

    @property
    def form(self) -> bytes:
        """The name of the format that is written here."""
        return ZLIB if self._standard is None and self._other is None else ZSTD

    def compress(self, data: bytes) -> bytes:
        """Return bytes in that format."""
        if self._standard is not None:
            return bytes(self._standard.compress(data, _ZSTD_LEVEL))
        if self._other is not None:
            # One for each call: they cannot be shared between threads.
            return bytes(self._other.ZstdCompressor(_ZSTD_LEVEL).compress(data))
        return zlib.compress(data, _ZLIB_LEVEL)

    def decompress(self, form: bytes, data: bytes, longest: int) -> bytes:
        """Return compressed bytes as they were.

        Args:
            form: The name of their format.
            data: The compressed bytes.
            longest: How many bytes may come out: a few kilobytes could fill all memory.

        Raises:
            DecodeError: They are damaged, longer than that, or in a format that is not read here.
        """
        plain, is_whole = _guarded(lambda: self._read(form, data, longest))
        if len(plain) > longest:
            msg = (
                f"a recorded value has more than {longest} bytes once it is decompressed; where "
                "that is no mistake, raise Durable(payloads=Payloads(max_size=…))"
            )
            raise DecodeError(msg)
        if not is_whole:
            msg = "a recorded value is damaged: its compressed form is cut off, or too long"
            raise DecodeError(msg)
        return plain

    def _read(self, form: bytes, data: bytes, longest: int) -> tuple[bytes, bool]:
        """Return what is in front of a limit, and whether that is exactly the whole."""
        if form == ZLIB:
            zlib_reader = zlib.decompressobj()
            plain = zlib_reader.decompress(data, longest + 1)
            return plain, zlib_reader.eof and not zlib_reader.unused_data
        if self._standard is not None:
            reader = self._standard.ZstdDecompressor()
            plain = bytes(reader.decompress(data, longest + 1))
            return plain, bool(reader.eof and not reader.unused_data)
        if self._other is None:
            msg = "a recorded value is compressed with zstd: install backports.zstd to read it"
            raise DecodeError(msg)
        # This reader ends quietly where its input is cut off: the frame's own size tells.
        with self._other.ZstdDecompressor().stream_reader(data) as stream:
            plain = bytes(stream.read(longest + 1))
        return plain, len(plain) == self._other.frame_content_size(data)


def _guarded(read: Callable[[], T]) -> T:
    try:
        return read()
    except DecodeError:
        raise
    except Exception as error:  # each library has errors of its own
        msg = f"a recorded value is damaged: it cannot be decompressed ({type(error).__name__})"
        raise DecodeError(msg) from None


def _imported(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None
