"""Errors of well-known libraries keep the attributes that applications use, and no credentials."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import botocore.exceptions
import httpx
import httpx2
import psycopg
import pydantic
import pydantic_core
import pytest
import requests
import sqlalchemy as sa
from aiohttp.client_reqrep import ConnectionKey
from multidict import CIMultiDict, CIMultiDictProxy
from support.databases.postgres import PostgresServer, fetch
from yarl import URL

from asgi_durable import JsonCodec, RemoteError, StepRetriesExhaustedError

SECRET = "hunter2"
WITH_USER = f"https://anna:{SECRET}@example.org/orders?page=2"
PLAIN = "https://example.org/orders?page=2"
HEADERS = {
    "authorization": SECRET,
    "cookie": SECRET,
    "proxy-authorization": SECRET,
    "x-key": SECRET,
}
ANSWER = [("set-cookie", SECRET), ("retry-after", "3"), ("x-a", "1"), ("x-a", "2")]


def through_the_log(error: BaseException) -> Any:
    codec = JsonCodec()
    data = codec.encode(error)
    assert SECRET.encode() not in data
    restored = codec.decode(data)
    again = codec.decode(codec.encode(restored))
    assert (type(again), str(again)) == (type(restored), str(restored))
    return restored


def notes(error: BaseException) -> list[str]:
    return [note for note in getattr(error, "__notes__", []) if "Recorded traceback" not in note]


def caught(client: Any, url: str = WITH_USER, **options: object) -> Any:
    try:
        client.get(url, headers=HEADERS, **options).raise_for_status()
    except Exception as error:
        return error
    raise AssertionError


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_the_status_error_of_httpx_keeps_its_response(library: Any) -> None:
    body = {"error": "gone"}
    answer = library.Response(404, headers=ANSWER, json=body)
    client = library.Client(transport=library.MockTransport(lambda _: answer))

    error = through_the_log(caught(client))

    assert type(error) is library.HTTPStatusError
    assert str(error).startswith(f"Client error '404 Not Found' for url '{PLAIN}'")
    response = error.response
    assert type(response) is library.Response
    assert (response.status_code, response.json(), response.is_closed) == (404, body, True)
    assert response.headers.get_list("x-a") == ["1", "2"]
    assert (response.headers["retry-after"], "set-cookie" in response.headers) == ("3", False)
    assert (error.request.method, str(response.url)) == ("GET", PLAIN)
    assert set(error.request.headers) == {"host"}
    assert notes(error) == []


def test_a_step_that_gave_up_names_no_password_either() -> None:
    client = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(500)))
    last = caught(client)

    error = through_the_log(StepRetriesExhaustedError("pay", [last], 3))

    assert type(error) is StepRetriesExhaustedError
    assert PLAIN in str(error)
    assert error.errors[0].response.status_code == 500


def test_a_packed_body_is_read_unpacked() -> None:
    answer = httpx.Response(
        500, headers={"content-encoding": "gzip"}, content=gzip.compress(b"broken")
    )
    error = through_the_log(caught(httpx.Client(transport=httpx.MockTransport(lambda _: answer))))

    assert error.response.text == "broken"
    assert error.response.headers["content-encoding"] == "gzip"


def test_of_a_long_body_the_beginning_is_kept_and_a_note_says_so() -> None:
    answer = httpx.Response(500, content=b"x" * 100_000)
    error = through_the_log(caught(httpx.Client(transport=httpx.MockTransport(lambda _: answer))))

    assert error.response.content == b"x" * 65_536
    assert [note for note in notes(error) if "65536 of 100000 bytes" in note]
    assert notes(through_the_log(error)) == notes(error)


def test_a_body_that_was_not_read_is_not_an_empty_one() -> None:
    answer = httpx.Response(500, stream=httpx.ByteStream(b"body"))
    client = httpx.Client(transport=httpx.MockTransport(lambda _: answer))
    with client.stream("GET", PLAIN) as response, pytest.raises(httpx.HTTPStatusError) as raised:
        response.raise_for_status()

    error = through_the_log(raised.value)

    assert error.response.status_code == 500
    with pytest.raises(httpx.ResponseNotRead):
        error.response.content  # noqa: B018
    with pytest.raises(httpx.StreamClosed):
        error.response.read()
    assert "had not been read" in notes(error)[0]


def test_an_error_of_a_connection_keeps_its_request() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectTimeout("too slow", request=request)

    error = through_the_log(caught(httpx.Client(transport=httpx.MockTransport(refuse))))

    assert type(error) is httpx.ConnectTimeout
    assert (str(error), str(error.request.url)) == ("too slow", PLAIN)


class ShopError(Exception):
    """An error with a response, as applications have them."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__("the shop is closed")
        self.response = response


class ArgumentError(Exception):
    pass


def test_an_error_of_the_applications_that_holds_a_response_keeps_it() -> None:
    response = httpx.Response(503, headers=ANSWER, text="closed")

    error = through_the_log(ShopError(response))

    assert (error.response.status_code, error.response.text) == (503, "closed")
    with pytest.raises(RuntimeError, match="request"):
        error.response.request  # noqa: B018
    assert through_the_log(ArgumentError("x", response)).args[1].status_code == 503


class Answering(requests.adapters.BaseAdapter):
    """A transport in place of the network."""

    def __init__(self, body: object) -> None:
        super().__init__()
        self.body = body

    def send(self, request: requests.PreparedRequest, **_: object) -> requests.Response:
        response = requests.Response()
        response.status_code, response.reason = 422, "Unprocessable"
        response.headers.update({"Set-Cookie": SECRET, "Content-Type": "application/json"})
        response.request, response.url = request, str(request.url)
        vars(response)["_content"] = self.body
        return response

    def close(self) -> None: ...


def test_the_error_of_requests_keeps_its_response() -> None:
    session = requests.Session()
    session.mount("https://", Answering(b'{"a": 1}'))

    original = caught(session)

    error = through_the_log(original)

    assert type(error) is requests.HTTPError
    assert (error.response.status_code, error.response.json()) == (422, {"a": 1})
    assert error.response.headers == {"content-type": "application/json"}
    assert (error.response.url, error.request.url) == (PLAIN, PLAIN)
    assert (error.request.method, dict(error.request.headers)) == ("GET", {})
    assert error.response.elapsed == original.response.elapsed > datetime.timedelta(0)


def test_a_body_that_requests_had_not_read_is_not_an_empty_one() -> None:
    session = requests.Session()
    session.mount("https://", Answering(False))

    error = through_the_log(caught(session, stream=True))

    with pytest.raises(RuntimeError, match="already consumed"):
        error.response.content  # noqa: B018


def test_the_errors_of_aiohttp_keep_status_headers_and_place() -> None:
    headers = CIMultiDictProxy(CIMultiDict(HEADERS))
    info = aiohttp.RequestInfo(URL(WITH_USER), "GET", headers, URL(WITH_USER))
    answer = CIMultiDictProxy(CIMultiDict(ANSWER))
    status_error = aiohttp.ClientResponseError(info, (), status=429, message="slow", headers=answer)
    key = ConnectionKey("example.org", 443, True, True, URL(WITH_USER), SECRET, None)  # type: ignore[arg-type]
    connector_error = aiohttp.ClientConnectorError(key, ConnectionRefusedError(111, "refused"))

    refused, unreachable = through_the_log(status_error), through_the_log(connector_error)

    assert type(refused) is aiohttp.ClientResponseError
    assert (refused.status, refused.message, refused.headers["Retry-After"]) == (429, "slow", "3")
    assert (refused.headers.getall("x-a"), "Set-Cookie" in refused.headers) == (["1", "2"], False)
    assert str(refused.request_info.real_url) == PLAIN
    assert len(refused.request_info.headers) == 0
    assert type(unreachable) is aiohttp.ClientConnectorError
    assert (unreachable.host, unreachable.port, unreachable.errno) == ("example.org", 443, 111)
    assert str(unreachable) == str(connector_error)


def test_the_error_of_boto_keeps_its_code_also_of_a_class_that_boto_has_made() -> None:
    headers = {"set-cookie": SECRET, "server": "s3"}
    answer = {
        "Error": {"Code": "NoSuchKey", "Message": "no such key"},
        "ResponseMetadata": {"HTTPStatusCode": 404, "HTTPHeaders": headers},
    }
    base = botocore.exceptions.ClientError
    made = type("NoSuchKey", (base,), {"__module__": "botocore.errorfactory"})

    for cls in (base, made):
        error = through_the_log(cls(answer, "GetObject"))

        assert type(error) is base
        assert error.response["Error"]["Code"] == "NoSuchKey"
        assert error.response["ResponseMetadata"]["HTTPHeaders"] == {"server": "s3"}
        assert (
            notes(error) == []
            if cls is base
            else ["botocore.errorfactory:NoSuchKey" in notes(error)[0]]
        )
    assert headers["set-cookie"] == SECRET


def test_an_error_of_a_library_that_was_made_in_another_way_is_recorded() -> None:
    for cls in (botocore.exceptions.ClientError, psycopg.DataError, sa.exc.StatementError):
        error = cls.__new__(cls)
        error.response = "none"

        assert type(JsonCodec().decode(JsonCodec().encode(error))) in {cls, RemoteError}


class Order(pydantic.BaseModel):
    number: int
    text: str = ""

    @pydantic.field_validator("text")
    @classmethod
    def not_empty(cls, text: str) -> str:
        if text == "{number}":
            raise ValueError("no {number} here")
        raise pydantic_core.PydanticCustomError("too_short", "at least {least}", {"least": 3})


class Secretive(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(hide_input_in_errors=True)
    number: int


@pytest.mark.parametrize(
    "value",
    [{"number": "x"}, {}, {"number": 1, "text": "{number}"}, {"number": 1, "text": "a"}, 7],
    ids=str,
)
def test_a_validation_error_keeps_its_fields(value: object) -> None:
    with pytest.raises(pydantic.ValidationError) as raised:
        Order.model_validate(value)

    error = through_the_log(raised.value)

    assert type(error) is pydantic.ValidationError
    assert str(error) == str(raised.value)
    assert error.json() == raised.value.json()


def test_a_validation_error_of_a_model_that_hides_its_input_records_none() -> None:
    with pytest.raises(pydantic.ValidationError) as raised:
        Secretive.model_validate({"number": SECRET})

    assert str(through_the_log(raised.value)) == str(raised.value)


@contextmanager
def connected(**options: bool) -> Iterator[sa.Connection]:
    engine = sa.create_engine("sqlite://", **options)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def test_an_error_of_the_database_keeps_statement_parameters_and_cause() -> None:
    with connected() as connection:
        connection.execute(sa.text("create table t (a int unique)"))
        connection.execute(sa.text("insert into t values (1)"))
        with pytest.raises(sa.exc.IntegrityError) as raised:
            connection.execute(sa.text("insert into t values (:a)"), {"a": 1})

    error = through_the_log(raised.value)

    assert type(error) is sa.exc.IntegrityError
    assert str(error) == str(raised.value)
    assert (error.params, repr(error.orig)) == ((1,), repr(raised.value.orig))


def test_parameters_that_sqlalchemy_hides_are_not_recorded() -> None:
    with connected(hide_parameters=True) as connection:
        with pytest.raises(sa.exc.OperationalError) as raised:
            connection.execute(sa.text("select :a from nowhere"), {"a": SECRET})

    assert str(through_the_log(raised.value)) == str(raised.value)


def test_an_error_of_psycopg_keeps_its_details(postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.url) as connection:
        with pytest.raises(psycopg.errors.DivisionByZero) as raised:
            connection.execute("select 1/0")
        original = raised.value

        error = through_the_log(original)

        assert type(error) is psycopg.errors.DivisionByZero
        assert (error.sqlstate, error.diag.sqlstate) == ("22012", "22012")
        assert error.diag.message_primary == original.diag.message_primary
        assert error.pgconn is None
        assert original.pgresult is not None


async def _asyncpg_error(url: str) -> BaseException:
    with pytest.raises(Exception, match="zero") as raised:
        await fetch(url, "select 1/0")
    return raised.value


@pytest.mark.anyio
async def test_an_error_of_asyncpg_keeps_its_fields(postgres: PostgresServer) -> None:
    original: Any = await _asyncpg_error(postgres.url)

    error = through_the_log(original)

    assert type(error) is type(original)
    assert (str(error), error.sqlstate, error.severity) == (str(original), "22012", "ERROR")


def _syntax_error() -> Exception:
    try:
        compile("a b", "shop.py", "exec")
    except SyntaxError as error:
        return error
    raise AssertionError


def _import_error() -> Exception:
    try:
        import no_such_shop  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        return error
    raise AssertionError


def _json_error() -> Exception:
    try:
        json.loads('{"a":')
    except ValueError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("original", "names"),
    [
        (FileNotFoundError(2, "no such file", "a", None, "b"), "errno strerror filename filename2"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "encoding object start end reason"),
        (_syntax_error(), "msg filename lineno offset text end_lineno"),
        (_import_error(), "name path msg"),
        (_json_error(), "msg doc pos lineno colno"),
        (subprocess.CalledProcessError(3, ["ls"], b"out", b"err"), "returncode cmd stdout stderr"),
        (asyncio.IncompleteReadError(b"x", 10), "partial expected"),
        (TimeoutError("late"), "args"),
        (KeyError("k"), "args"),
        (NameError("x", name="x"), "name args"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_the_standard_library_keeps_its_fields(original: Any, names: str) -> None:
    error = through_the_log(original)

    assert type(error) is type(original)
    assert str(error) == str(original)
    for name in names.split():
        assert getattr(error, name) == getattr(original, name)
    assert notes(error) == []
