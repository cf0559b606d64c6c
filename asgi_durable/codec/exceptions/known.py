"""Exceptions of well-known libraries that need more than their arguments and attributes.

None of the libraries is imported here: their classes are recognised by their names.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from asgi_durable.codec.raw_access import attributes_of, base_names, find_class

__all__ = ["KNOWN", "names_credentials", "prepared_attributes"]

_HIDDEN = "hidden, as hide_parameters=True"
# The messages of these errors name URLs.
_OF_HTTP = frozenset(
    {
        "aiohttp.client_exceptions:ClientError",
        "asgi_durable.errors:StepRetriesExhaustedError",
        "httpx:HTTPError",
        "httpx:InvalidURL",
        "httpx2:HTTPError",
        "httpx2:InvalidURL",
        "requests.exceptions:RequestException",
    }
)


def names_credentials(error: BaseException) -> bool:
    """Tell whether an error's message may name a URL with a user and a password."""
    return any(name in _OF_HTTP for name in base_names(type(error)))


def prepared_attributes(error: BaseException) -> dict[str, Any]:
    """Return an exception's attributes; those of well-known classes in a form to record."""
    attributes = dict(attributes_of(error))
    for name in base_names(type(error)):
        prepare = _PREPARED.get(name)
        # Without the attributes that the library gives it, an object is taken as it is.
        with suppress(AttributeError, TypeError, LookupError):
            if prepare is not None:
                prepare(error, attributes)
    return attributes


def _prepare_psycopg(error: Any, attributes: dict[str, Any]) -> None:
    """Keep the details of an error of Postgres's: ``error.diag``."""
    # It pickles them as a dictionary, and changes its own attributes on the way.
    info = error.__reduce__()[2]["_info"]
    attributes_of(error).update(attributes)
    attributes["_info"] = {int(field): value for field, value in info.items()} if info else info
    attributes["_pgconn"] = None


def _prepare_statement_error(error: Any, attributes: dict[str, Any]) -> None:
    if error.hide_parameters and error.params:
        attributes["params"] = _HIDDEN


def _prepare_botocore(error: Any, attributes: dict[str, Any]) -> None:
    meta = error.response.get("ResponseMetadata", {})
    headers = meta.get("HTTPHeaders", {})
    kept = {name: value for name, value in headers.items() if name.lower() != "set-cookie"}
    if len(kept) < len(headers):
        meta = {**meta, "HTTPHeaders": kept}
        attributes["response"] = {**error.response, "ResponseMetadata": meta}


_PREPARED: dict[str, Callable[[Any, dict[str, Any]], None]] = {
    "botocore.exceptions:ClientError": _prepare_botocore,
    "psycopg:Error": _prepare_psycopg,
    "sqlalchemy.exc:StatementError": _prepare_statement_error,
}


def _pack_validation_error(error: Any) -> dict[str, Any]:
    # Where the model hides its input, the log must not hold it either.
    is_hidden = "input_value=" not in str(error)
    lines = error.errors(include_url=False, include_input=not is_hidden)
    return {"title": error.title, "errors": lines, "hidden": is_hidden}


def _unpack_validation_error(cls: Any, data: Any) -> BaseException:
    lines = [_line_error(cls, line) for line in data["errors"]]
    error: BaseException = cls.from_exception_data(data["title"], lines, hide_input=data["hidden"])
    return error


def _line_error(cls: Any, line: dict[str, Any]) -> dict[str, Any]:
    """Return an error of one field, of pydantic's own or of the application's kind."""
    context = line.get("ctx")
    kept = {"loc": line["loc"], "input": line.get("input"), "type": line["type"]}
    if context is not None:
        kept["ctx"] = context
    try:
        cls.from_exception_data("", [kept])
    except (KeyError, TypeError):
        custom: Any = find_class("pydantic_core._pydantic_core:PydanticCustomError")
        # The kind is the application's own. Its message is a template, which is full already.
        kept["type"] = custom(line["type"], line["msg"], context)
        kept.pop("ctx", None)
    return kept


# By class name: a function that returns an exception's data, and one that makes it again.
KNOWN: dict[str, tuple[Callable[[Any], object], Callable[[type, Any], BaseException]]] = {
    "pydantic_core._pydantic_core:ValidationError": (
        _pack_validation_error,
        _unpack_validation_error,
    ),
}
