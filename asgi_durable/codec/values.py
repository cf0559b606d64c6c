"""Values on their way into the log and back: which form each is written in.

A record's first two bytes say which form it has. No JSON begins like one of these:

* ``t:`` JSON that the type hint of today reads;
* ``j:`` the same, where it reads alike without any hint;
* ``i:`` the arguments of a workflow, each in a form of its own;
* ``o:`` another workflow's result, behind its name, as that is recorded;
* ``c:`` what a codec of the application's has written, where that begins like one of these.

Anything else describes itself: it is what the codec writes, and versions before have written.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any

import msgspec

from asgi_durable.codec.json_codec import Codec, JsonCodec
from asgi_durable.codec.sealing.sealer import ERROR, Sealer
from asgi_durable.codec.typed.adapters import Adapter, MisfitError, read_plain
from asgi_durable.errors import DecodeError, EncodeError, PayloadTooLargeError

__all__ = ["Values"]

_SEALED = frozenset({b"z:", b"s:", b"e:"})
_FORMS = _SEALED | {b"t:", b"j:", b"i:", b"o:", b"c:"}
# Of the default codec.
_NAMES_A_CLASS = b'"t":'
# Nobody can change one, so it comes back as it is.
_UNCHANGING = frozenset({type(None), bool, int, str})
_encode_name = msgspec.json.Encoder().encode
_decode_name = msgspec.json.Decoder(str).decode


class _Arguments(msgspec.Struct):
    """A workflow's arguments.

    Attributes:
        typed: Those that the hints of their parameters read.
        plain: Those among them that read alike without.
        described: The others, as the default codec writes a dictionary of them.
        coded: The same, as a codec of the application's does, in base 64.
    """

    typed: dict[str, msgspec.Raw] = msgspec.field(name="t", default_factory=dict)
    plain: dict[str, msgspec.Raw] = msgspec.field(name="j", default_factory=dict)
    described: msgspec.Raw = msgspec.field(name="v", default_factory=msgspec.Raw)
    coded: str | None = msgspec.field(name="c", default=None)


_read_arguments = msgspec.json.Decoder(_Arguments).decode


class Values:
    """Writes and reads the values of one engine.

    Args:
        codec: Writes what no type hint describes.
        sealer: Compresses and encrypts what is written.
    """

    def __init__(self, codec: Codec, sealer: Sealer) -> None:
        self.codec = codec
        self.sealer = sealer
        self._seal = sealer.seal
        self._as_it_is_up_to = sealer.as_it_is_up_to
        self._is_json = type(codec) is JsonCodec

    def write(
        self, value: Any, adapter: Adapter | None = None
    ) -> tuple[bytes, Any, MisfitError | None]:
        """Return a value as bytes, as it comes back, and why its hint is no way to record it.

        Raises:
            EncodeError: It cannot be recorded so that it comes back.
        """
        misfit: MisfitError | None = None
        if adapter is not None:
            try:
                data, back = adapter.write(value)
                data = adapter.form + data
                if len(data) > self._as_it_is_up_to:
                    data = self._seal(data)
                return data, back, None
            except MisfitError as error:
                misfit = error
        data, back = self._described(value)
        return self._seal(data), back, misfit if _counts(misfit, data) else None

    def write_error(self, error: BaseException, *, has_limit: bool = True) -> bytes:
        """Return an error as bytes.

        Args:
            error: The error.
            has_limit: False to write it whatever its size.

        Raises:
            EncodeError: It cannot be recorded so that it comes back.
            PayloadTooLargeError: It is larger than the limit.
        """
        data, _ = self._described(error)
        if has_limit and len(data) > self.sealer.max_size:
            msg = f"it takes {len(data)} bytes, and at most {self.sealer.max_size} are recorded"
            raise PayloadTooLargeError(msg)
        return self._seal(data, ERROR)

    def read_error(self, data: bytes) -> Exception:
        """Return an error that was written.

        Raises:
            DecodeError: It is damaged, or no error.
        """
        error = self.read(self.sealer.open(data, ERROR))
        if not isinstance(error, Exception):
            msg = "it is no error"
            raise DecodeError(msg)
        return error

    def read(self, data: bytes, adapter: Adapter | None = None) -> Any:
        """Return what was written, as today's code has it.

        Raises:
            DecodeError: It is damaged, or does not fit the hint.
        """
        form = data[:2]
        if form not in _FORMS:
            return self._decoded(data)
        if form == b"j:":
            return read_plain(data[2:]) if adapter is None else adapter.read(data[2:])
        if form == b"t:":
            if adapter is None:
                msg = "it was written by an annotation, and there is none now: annotate it again"
                raise DecodeError(msg)
            return adapter.read(data[2:])
        if form == b"c:":
            return self._decoded(data[2:])
        if form in _SEALED:
            return self.read(self._opened(data), adapter)
        msg = "it is no single value"
        raise DecodeError(msg)

    def write_arguments(
        self, arguments: Mapping[str, Any], adapters: Mapping[str, Adapter]
    ) -> tuple[bytes, dict[str, MisfitError]]:
        """Return a workflow's arguments as bytes, and why hints of them are no way to do so.

        Raises:
            EncodeError: One of them cannot be recorded so that it comes back.
        """
        typed: list[bytes] = []
        plain: list[bytes] = []
        described: dict[str, Any] = {}
        misfits: dict[str, MisfitError] = {}
        for name, value in arguments.items():
            adapter = adapters.get(name)
            if adapter is None:
                described[name] = value
                continue
            try:
                member = b"%b:%b" % (_encode_name(name), adapter.write(value)[0])
                (plain if adapter.form == b"j:" else typed).append(member)
            except MisfitError as error:
                described[name] = value
                misfits[name] = error
        data = self._arguments(typed, plain, described)
        counting = {name: misfit for name, misfit in misfits.items() if _counts(misfit, data)}
        return self._seal(data), counting

    def _arguments(
        self, typed: list[bytes], plain: list[bytes], described: dict[str, Any]
    ) -> bytes:
        if not typed and not plain:
            return self._described(described)[0]
        lists = ((b"t", typed), (b"j", plain))
        parts = [b'"%b":{%b}' % (form, b",".join(members)) for form, members in lists if members]
        if described:
            data, _ = self._described(described)
            name, kept = (b"v", data) if self._is_json else (b"c", b'"%b"' % b64encode(data))
            parts.append(b'"%b":%b' % (name, kept))
        return b"i:{%b}" % b",".join(parts)

    def write_outcome(self, name: str, output: bytes) -> bytes:
        """Return the record of another workflow's result.

        Args:
            name: The workflow's.
            output: Its result, as it is recorded.
        """
        data = b"o:%b\n%b" % (_encode_name(name), output)
        # Its size was checked when the workflow ended, and a name comes to it here.
        return self.sealer.seal_any_size(data)

    def read_outcome(self, data: bytes) -> tuple[str, bytes] | None:
        """Return the workflow's name and its result, as that is recorded; ``None`` if it is none.

        Raises:
            DecodeError: It is damaged.
        """
        if data[:2] in _SEALED:
            data = self.sealer.open(data)
        if data[:2] != b"o:":
            return None
        name, _, output = data[2:].partition(b"\n")
        try:
            return _decode_name(name), output
        except Exception as error:
            msg = f"the name of a workflow is damaged ({error})"
            raise DecodeError(msg) from error

    def read_arguments(self, data: bytes, adapters: Mapping[str, Adapter]) -> dict[str, Any]:
        """Return a workflow's arguments by name.

        Raises:
            DecodeError: They are damaged, or one does not fit its hint; the message names it.
        """
        if data[:2] in _SEALED:
            return self.read_arguments(self._opened(data), adapters)
        if data[:2] != b"i:":
            return _checked(self.read(data))
        try:
            kept = _read_arguments(data[2:])
            coded = None if kept.coded is None else b64decode(kept.coded)
        except Exception as error:
            msg = f"the recorded arguments are damaged ({error})"
            raise DecodeError(msg) from error
        arguments: dict[str, Any] = {}
        for name, raw in kept.typed.items():
            arguments[name] = _read_argument(name, bytes(raw), adapters.get(name))
        for name, raw in kept.plain.items():
            adapter = adapters.get(name)
            arguments[name] = (
                read_plain(bytes(raw))
                if adapter is None
                else _read_argument(name, bytes(raw), adapter)
            )
        if len(kept.described):
            arguments |= _checked(self.read(bytes(kept.described)))
        if coded is not None:
            arguments |= _checked(self.read(coded))
        return arguments

    def text(self, data: bytes) -> str:
        """Return what a record that cannot be read looks like, for people."""
        if data[:2] in _SEALED:
            try:
                data = self.sealer.open(data)
            except DecodeError as error:
                return f"<{error}>"
        content = data[2:] if data[:2] in _FORMS else data
        return content.decode("utf-8", "replace")

    def _opened(self, data: bytes) -> bytes:
        opened = self.sealer.open(data)
        if opened[:2] in _SEALED:
            msg = "it is sealed twice, which no record is"
            raise DecodeError(msg)
        return opened

    def _decoded(self, data: bytes) -> Any:
        try:
            return self.codec.decode(data)
        except (DecodeError, MemoryError):
            raise
        except Exception as error:  # of an application's codec
            msg = f"the codec failed ({type(error).__name__}: {error})"
            raise DecodeError(msg) from error

    def _encoded(self, value: Any) -> bytes:
        try:
            return self.codec.encode(value)
        except (EncodeError, MemoryError):
            raise
        except Exception as error:  # of an application's codec
            msg = f"the codec failed ({type(error).__name__}: {error})"
            raise EncodeError(msg) from error

    def _described(self, value: Any) -> tuple[bytes, Any]:
        data = self._encoded(value)
        if self._is_json:
            if type(value) in _UNCHANGING:
                return data, value
        elif data[:2] in _FORMS:
            data = b"c:%b" % data
        try:
            return data, self.read(data)
        except DecodeError as error:
            msg = f"it could not be read back: {error}"
            raise EncodeError(msg) from error


def _counts(misfit: MisfitError | None, data: bytes) -> bool:
    """Tell whether it matters that a value is recorded with the names of its classes.

    Args:
        misfit: Why it is; ``None`` if there is no reason.
        data: The value in its self-describing form.
    """
    return misfit is not None and (misfit.is_wrong or _NAMES_A_CLASS in data)


def _checked(arguments: object) -> dict[str, Any]:
    if isinstance(arguments, dict) and all(isinstance(name, str) for name in arguments):
        return arguments
    msg = "the recorded arguments are no arguments"
    raise DecodeError(msg)


def _read_argument(name: str, data: bytes, adapter: Adapter | None) -> Any:
    if adapter is None:
        msg = f"argument {name!r} was written by an annotation, and has none now: annotate it again"
        raise DecodeError(msg)
    try:
        return adapter.read(data)
    except DecodeError as error:
        msg = f"argument {name!r} does not fit its type hint: {error}"
        raise DecodeError(msg) from error
