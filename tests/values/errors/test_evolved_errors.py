"""Errors that one version of an application raised and the next version catches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy as sa
from support.executors import result_of
from support.same_values import difference
from support.versions import CHANGES, KINDS, Code, Defined, Version, finish, leave

from asgi_durable import RemoteError, WorkflowState

pytestmark = pytest.mark.anyio

FORMER = """
class OutOfStock(Exception):
    def __init__(self, item, left):
        super().__init__(f"there are {left} of {item}")
        self.item = item
        self.left = left
"""
# It takes other arguments, and has one more attribute.
LATER = """
class {name}(Exception):
    unit = "pieces"

    def __init__(self, *, stock):
        raise AssertionError(stock)
"""
DURABLE = """
from asgi_durable import DurableError

class OutOfStock(DurableError):
    default_status = 410
    default_code = "GONE"
"""
EMPTY = ""


@contextmanager
def defined(source: str, module: str = "shop", name: str = "OutOfStock") -> Iterator[Any]:
    """Define a class in a module, until the end of the block."""
    made = ModuleType(module)
    sys.modules[module] = made
    try:
        exec(source, vars(made))
        yield vars(made).get(name)
    finally:
        del sys.modules[module]


def raising(code: Code) -> Callable[[], Any]:
    """Return a function that raises the version's value."""

    async def fail() -> None:
        code.ran.append("fail")
        raise code.version.make()

    return fail


def caught(code: Code, failing: Any) -> Defined:
    """Define a workflow that catches what a function raises."""

    async def work() -> None:
        try:
            await failing()
        except Exception as error:
            code.seen.append(error)
        await code.hold()

    return code.workflow("work", work), tuple


def of_a_step(code: Code) -> Defined:
    return caught(code, code.step("fail", raising(code)))


def of_a_child(code: Code) -> Defined:
    return caught(code, code.workflow("fail", raising(code)))


def of_a_transaction(code: Code) -> Defined:
    fail = raising(code)

    async def insert() -> None:
        await code.durable.session.execute(sa.text("SELECT 1"))
        await fail()

    return caught(code, code.transaction("fail", insert))


PLACES = [of_a_step, of_a_child, of_a_transaction]


@pytest.mark.parametrize("place", PLACES)
async def test_an_error_keeps_its_attributes_where_its_class_changes(url: str, place) -> None:
    with defined(FORMER) as former:
        await leave(Code(place, Version(None, lambda: former("tea", 2)), url, waits=True))
    with defined(LATER.format(name="OutOfStock")) as later:
        code = Code(place, Version(None, lambda: None), url)
        await finish(code)

        (error,) = code.seen
        assert (type(error), str(error)) == (later, "there are 2 of tea")
        assert (error.item, error.left, error.unit) == ("tea", 2, "pieces")
        assert code.ran == ["hold"]


@pytest.mark.parametrize("module", ["shop", "store"])
@pytest.mark.parametrize("place", PLACES)
async def test_a_class_of_errors_may_have_another_name(url: str, place, module: str) -> None:
    with defined(FORMER) as former:
        await leave(Code(place, Version(None, lambda: former("tea", 2)), url, waits=True))
    with defined(LATER.format(name="SoldOut"), module, "SoldOut") as later:
        code = Code(place, Version(None, lambda: None), url)
        code.durable.register_exception(later, aliases=["shop:OutOfStock"])
        await finish(code)

        (error,) = code.seen
        assert (type(error), str(error)) == (later, "there are 2 of tea")
        assert (error.item, error.left) == ("tea", 2)


async def test_so_may_that_of_an_error_beside_the_application_s_rows(
    url: str, tmp_path: Path
) -> None:
    options = {"application_url": f"sqlite:///{tmp_path}/application.db"}
    with defined(FORMER) as former:
        version = Version(None, lambda: former("tea", 2))
        await leave(Code(of_a_transaction, version, url, waits=True, **options))
    with defined(LATER.format(name="SoldOut"), "store", "SoldOut") as later:
        code = Code(of_a_transaction, Version(None, lambda: None), url, **options)
        code.durable.register_exception(later, aliases=["shop:OutOfStock"])
        await finish(code)

        (error,) = code.seen
        assert (type(error), error.item, error.left) == (later, "tea", 2)


@pytest.mark.parametrize("place", PLACES)
async def test_an_error_whose_class_is_gone_is_remote(url: str, place) -> None:
    with defined(FORMER) as former:
        await leave(Code(place, Version(None, lambda: former("tea", 2)), url, waits=True))
    with defined(EMPTY):
        code = Code(place, Version(None, lambda: None), url)
        await finish(code)

    (error,) = code.seen
    assert isinstance(error, RemoteError)
    assert (error.type_name, error.message) == ("shop:OutOfStock", "there are 2 of tea")


async def test_one_that_says_how_it_is_answered_says_so_still(url: str) -> None:
    with defined(DURABLE) as former:
        await leave(Code(of_a_step, Version(None, lambda: former("sold out")), url, waits=True))
    code = Code(of_a_step, Version(None, lambda: None), url)
    await finish(code)

    (error,) = code.seen
    assert isinstance(error, RemoteError)
    assert (error.status_code, error.code) == (410, "GONE")


async def test_a_finished_workflow_s_error_may_have_another_name(url: str) -> None:
    def failing(code: Code) -> Defined:
        return code.workflow("work", raising(code)), tuple

    with defined(FORMER) as former:
        async with (code := Code(failing, Version(None, lambda: former("tea", 2)), url)).durable:
            with pytest.raises(former):
                await code.durable.options(workflow_id="w").run_workflow(code.work)
    with defined(LATER.format(name="SoldOut"), "store", "SoldOut") as later:
        code = Code(failing, Version(None, lambda: None), url)
        code.durable.register_exception(later, aliases=["shop:OutOfStock"])
        async with code.durable as durable:
            handle = await durable.retrieve_workflow("w")
            status = await handle.get_status()
            with pytest.raises(later, match="there are 2 of tea") as raised:
                await result_of(durable, "w")

        assert (type(status.error), status.status) == (later, WorkflowState.ERROR)
        assert (raised.value.left, code.ran) == (2, [])


@pytest.mark.parametrize("kind", ["dataclass", "model", "namedtuple"])
@pytest.mark.parametrize("change", ["a field with a default is added", "a field is gone"])
async def test_an_attribute_is_of_today_s_class(url: str, kind: str, change: str) -> None:
    """Classes of steps' results and arguments are known, also as attributes of an error."""

    def failing(code: Code) -> Defined:
        code.step("return", code.make, **{"return": code.version.hint})

        async def fail() -> None:
            error = ValueError("no such order")
            error.order = code.version.make()  # type: ignore[attr-defined]
            raise error

        return caught(code, code.step("fail", fail))

    with ExitStack() as stack:
        former, later = stack.enter_context(CHANGES[change].made(KINDS[kind]))
        await leave(Code(failing, former, url, waits=True))
        code = Code(failing, later, url)
        await finish(code)

        (error,) = code.seen
        assert difference(error.order, later.make()) == ""
