"""Writing and reading the arguments and results of a decorated function."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

from asgi_durable.codec.typed.adapters import Adapter, MisfitError, adapter_for
from asgi_durable.codec.values import Values
from asgi_durable.errors import DecodeError, EncodeError

__all__ = ["FunctionValues"]

logger = logging.getLogger(__name__)

_REMEDY = "give new fields a default, register renamed classes with aliases, or run code that fits"


class FunctionValues:
    """Reads and writes the values of one function, by the annotations that it has now.

    Args:
        values: The engine's values.
        function: The function's name in messages.
        signature: The function's parameters.
        hints: The types of the parameters and the result, as far as they can be resolved.
    """

    def __init__(
        self,
        values: Values,
        function: str,
        signature: inspect.Signature,
        hints: Mapping[str, object],
    ) -> None:
        self._values = values
        self._function = function
        self._logged: set[str] = set()
        self._result = self._adapter("result", hints.get("return"))
        self._parameters = {
            name: adapter
            for name, parameter in signature.parameters.items()
            if name in hints
            and (adapter := self._adapter(name, _hint_of(parameter, hints[name]))) is not None
        }

    def write_result(self, value: object) -> tuple[bytes, Any]:
        """Return a result as bytes, and as a replay will return it.

        Raises:
            EncodeError: The result cannot be recorded; the message names the function.
        """
        try:
            data, back, misfit = self._values.write(value, self._result)
        except EncodeError as error:
            if inspect.iscoroutine(value):
                # The message says that it was not awaited, so Python need not warn.
                value.close()
            msg = f"the result of {self._function} cannot be recorded: {error}"
            raise type(error)(msg) from error.__cause__
        if misfit is not None:
            self._log_misfit("result", misfit)
        return data, back

    def read_result(self, data: bytes | None) -> Any:
        """Return a recorded result.

        Raises:
            DecodeError: The result does not fit the function; the message says what to do.
        """
        try:
            return self._values.read(data or b"null", self._result)
        except DecodeError as error:
            msg = f"the recorded result of {self._function} cannot be read ({error}): {_REMEDY}"
            raise type(error)(msg) from error

    def write_arguments(self, arguments: Mapping[str, Any]) -> bytes:
        """Return arguments by name as bytes.

        Raises:
            EncodeError: An argument cannot be recorded; the message names it.
        """
        try:
            data, misfits = self._values.write_arguments(arguments, self._parameters)
        except EncodeError as error:
            msg = f"the input of {self._function} cannot be recorded: {error}"
            raise type(error)(msg) from error.__cause__
        for name, misfit in misfits.items():
            self._log_misfit(f"argument {name!r}", misfit)
        return data

    def read_arguments(self, data: bytes) -> dict[str, Any]:
        """Return recorded arguments by name.

        Raises:
            DecodeError: An argument does not fit the function; the message says what to do.
        """
        try:
            return self._values.read_arguments(data, self._parameters)
        except DecodeError as error:
            msg = f"the recorded input of {self._function} cannot be read ({error}): {_REMEDY}"
            raise type(error)(msg) from error

    def _adapter(self, part: str, hint: object) -> Adapter | None:
        try:
            return adapter_for(hint)
        except NameError as error:
            logger.warning(
                "A type that the annotation of %s %s names cannot be resolved (%s), so its values "
                "are recorded with the names of their classes. Import it where the class is "
                "defined, and not for type checking alone",
                self._function,
                part,
                error,
            )
            return None

    def _log_misfit(self, part: str, misfit: MisfitError) -> None:
        if part in self._logged:
            return
        self._logged.add(part)
        if misfit.is_wrong:
            text = (
                "The %s of %s is not what its annotation says (%s). It is recorded as what it is, "
                "with the names of its classes, so that a change of these will matter: correct "
                "the annotation"
            )
        else:
            text = (
                "The %s of %s cannot be recorded by its annotation (%s), so the names of its "
                "classes are recorded: register a class that you rename, by register_type() with "
                "aliases"
            )
        logger.warning(text, part, self._function, misfit.reason)


def _hint_of(parameter: inspect.Parameter, hint: Any) -> object:
    """Return the type of a parameter's value; that of ``*args`` and ``**kwargs`` is a container."""
    if parameter.kind is parameter.VAR_POSITIONAL:
        return tuple[hint, ...]
    if parameter.kind is parameter.VAR_KEYWORD:
        return dict[str, hint]
    return hint
