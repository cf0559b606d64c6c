"""Requests and responses of HTTP clients that exceptions hold, as plain data.

The record of a response has its status, headers, a bounded body and the time that it took, that of
a request its method and URL. It has no credentials: no header of a request, no ``Set-Cookie``, no
user name and password of a URL. No client is imported here; its classes are found where the
application has loaded it.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from typing import Any

from asgi_durable.codec.exceptions.traceback_text import without_credentials
from asgi_durable.codec.raw_access import base_names, find_class
from asgi_durable.errors import DecodeError

__all__ = ["MAX_BODY_BYTES", "cut_body_note", "http_kind", "pack_http", "unpack_http"]

MAX_BODY_BYTES = 65_536
MAX_HEADERS = 100
MAX_HEADER_CHARACTERS = 8_192
_SECRET_HEADERS = frozenset({"set-cookie", "set-cookie2", "authorization", "proxy-authorization"})

# The classes are in the first with the library's extension in C, else in the second.
_MULTIDICT = ("multidict._multidict", "multidict._multidict_py")

Data = dict[str, Any]


def http_kind(value: object) -> str | None:
    """Return which of the known classes of HTTP clients a value belongs to."""
    return next((name for name in base_names(type(value)) if name in _KINDS), None)


def pack_http(kind: str, value: object) -> Data:
    """Return a value as data that the codec can record."""
    return _KINDS[kind][0](value)


def unpack_http(kind: object, data: object) -> Any:
    """Return a value that is like the recorded one.

    Raises:
        DecodeError: There is no such kind, or its library is not loaded.
    """
    if not isinstance(kind, str) or kind not in _KINDS or not isinstance(data, dict):
        msg = f"{kind!r} is nothing that recorded exceptions hold"
        raise DecodeError(msg)
    return _KINDS[kind][1](kind, data)


def cut_body_note(data: Data) -> str | None:
    """Return the note about a body that was not recorded whole."""
    if "body" not in data:
        return None
    size, body = data["size"], data["body"]
    if body is None:
        return "The body of the recorded response is missing, as it had not been read"
    if len(body) == size:
        return None
    return f"The body of the recorded response is cut: {len(body)} of {size} bytes were recorded"


def _class(kind: str, name: str) -> Any:
    """Return another class of the library that *kind* belongs to."""
    found = find_class(name)
    if found is None:
        msg = f"a recorded {kind} cannot be rebuilt, as {name} is not loaded in this process"
        raise DecodeError(msg)
    return found


def _pairs(headers: Iterable[tuple[object, object]]) -> list[list[str]]:
    kept = [
        [str(name), without_credentials(str(value))]
        for name, value in headers
        if str(name).lower() not in _SECRET_HEADERS and len(str(value)) <= MAX_HEADER_CHARACTERS
    ]
    return kept[:MAX_HEADERS]


def _pack_request(request: Any) -> Data:
    return {"method": request.method, "url": without_credentials(str(request.url))}


def _pack_httpx_response(response: Any) -> Data:
    # The properties raise where there is nothing, so they are not used.
    own = vars(response)
    request, version = own.get("_request"), response.extensions.get("http_version", b"")
    return {
        "status": response.status_code,
        "reason": response.reason_phrase,
        "version": version.decode("ascii", "replace"),
        "headers": _pairs(response.headers.multi_items()),
        "request": None if request is None else _pack_request(request),
        "elapsed": own.get("_elapsed"),
        "encoding": own.get("_encoding"),
        **_pack_body(own.get("_content")),
    }


def _pack_body(body: object) -> Data:
    if not isinstance(body, bytes):
        return {"body": None, "size": None}
    return {"body": body[:MAX_BODY_BYTES], "size": len(body)}


def _unpack_httpx_request(kind: str, data: Data) -> Any:
    library = kind.partition(":")[0]
    return _class(kind, f"{library}:Request")(data["method"], data["url"])


def _unpack_httpx_response(kind: str, data: Data) -> Any:
    library = kind.partition(":")[0]
    request, body = data["request"], data["body"]
    extensions = {"reason_phrase": data["reason"].encode("ascii", "ignore")}
    if data["version"]:
        extensions["http_version"] = data["version"].encode("ascii", "ignore")
    content = {"content": body}
    if body is None:
        # A body that is a stream counts as one that was not read.
        content = {"stream": _class(kind, f"{library}:ByteStream")(b"")}
    response = _class(kind, f"{library}:Response")(
        data["status"],
        request=None if request is None else _unpack_httpx_request(kind, request),
        extensions=extensions,
        **content,
    )
    # Set after the body: it is decoded already, whatever Content-Encoding says.
    response.headers = _class(kind, f"{library}:Headers")([tuple(pair) for pair in data["headers"]])
    response.is_closed = True
    if isinstance(data["elapsed"], datetime.timedelta):
        response.elapsed = data["elapsed"]
    if data["encoding"] is not None:
        response.encoding = data["encoding"]
    return response


def _pack_requests_response(response: Any) -> Data:
    return {
        "status": response.status_code,
        "reason": response.reason,
        "url": without_credentials(str(response.url)),
        "encoding": response.encoding,
        "headers": _pairs(response.headers.items()),
        "request": None if response.request is None else _pack_request(response.request),
        "elapsed": response.elapsed,
        **_pack_body(vars(response)["_content"]),
    }


def _unpack_requests_request(kind: str, data: Data) -> Any:
    request = _class(kind, "requests.models:PreparedRequest")()
    request.method, request.url = data["method"], data["url"]
    request.headers = _class(kind, "requests.structures:CaseInsensitiveDict")()
    return request


def _unpack_requests_response(kind: str, data: Data) -> Any:
    response = _class(kind, "requests.models:Response")()
    response.status_code, response.reason = data["status"], data["reason"]
    response.url, response.encoding = data["url"], data["encoding"]
    response.headers.update([tuple(pair) for pair in data["headers"]])
    response.elapsed = data["elapsed"]
    content = False if data["body"] is None else data["body"]
    vars(response).update(_content=content, _content_consumed=True)
    if data["request"] is not None:
        response.request = _unpack_requests_request(kind, data["request"])
    return response


def _pack_request_info(info: Any) -> Data:
    return {
        "method": info.method,
        "url": without_credentials(str(info.url)),
        "real_url": without_credentials(str(info.real_url)),
    }


def _unpack_request_info(kind: str, data: Data) -> Any:
    make_url = _class(kind, "yarl:URL")
    return _class(kind, kind)(
        make_url(data["url"]),
        data["method"],
        _unpack_headers(kind, {"headers": []}),
        make_url(data["real_url"]),
    )


def _pack_connection_key(key: Any) -> Data:
    # A context of TLS cannot be recorded, and a proxy has credentials.
    ssl = key.ssl if isinstance(key.ssl, bool) else None
    return {"host": key.host, "port": key.port, "is_ssl": key.is_ssl, "ssl": ssl}


def _unpack_connection_key(kind: str, data: Data) -> Any:
    cls = _class(kind, kind)
    # It is a named tuple, and was a class of attrs in earlier versions.
    names = cls._fields if issubclass(cls, tuple) else [a.name for a in cls.__attrs_attrs__]
    return cls(**{name: data.get(name) for name in names})


def _pack_headers(headers: Any) -> Data:
    return {"headers": _pairs(headers.items())}


def _unpack_headers(kind: str, data: Data) -> Any:
    pairs = [tuple(pair) for pair in data["headers"]]
    module = next((name for name in _MULTIDICT if find_class(f"{name}:CIMultiDict")), _MULTIDICT[0])
    headers = _class(kind, f"{module}:CIMultiDict")(pairs)
    return _class(kind, f"{module}:CIMultiDictProxy")(headers)


_KINDS: dict[str, tuple[Callable[[Any], Data], Callable[[str, Data], Any]]] = {
    "httpx:Request": (_pack_request, _unpack_httpx_request),
    "httpx:Response": (_pack_httpx_response, _unpack_httpx_response),
    "httpx2:Request": (_pack_request, _unpack_httpx_request),
    "httpx2:Response": (_pack_httpx_response, _unpack_httpx_response),
    "requests.models:PreparedRequest": (_pack_request, _unpack_requests_request),
    "requests.models:Response": (_pack_requests_response, _unpack_requests_response),
    "aiohttp.client_reqrep:RequestInfo": (_pack_request_info, _unpack_request_info),
    "aiohttp.client_reqrep:ConnectionKey": (_pack_connection_key, _unpack_connection_key),
    **{
        f"{module}:{cls}": (_pack_headers, _unpack_headers)
        for module in _MULTIDICT
        for cls in ("CIMultiDict", "CIMultiDictProxy")
    },
}
