"""Two versions of an application's code over one log: classes that change, and who uses them."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy as sa

from asgi_durable import Durable
from support.executors import POLL_SECONDS, beats, executor_of, result_of, row_of, until
from support.interruption import Gate

__all__ = [
    "BEFORE",
    "CHANGES",
    "KINDS",
    "PLACES",
    "READING_PLACES",
    "Change",
    "Class",
    "Code",
    "Field",
    "Kind",
    "Version",
    "as_field",
    "define",
    "finish",
    "leave",
    "stays_parked",
    "warnings_in",
]

ID = "w"


@dataclass(frozen=True)
class Field:
    """A field of a class.

    Attributes:
        default: Its source.
        factory: The source of what makes the default.
    """

    name: str
    type: str
    default: str | None = None
    factory: str | None = None

    @property
    def is_required(self) -> bool:
        """True if it has no default."""
        return self.default is None and self.factory is None


@dataclass(frozen=True)
class Kind:
    """A kind of class.

    Attributes:
        head: The source before the fields.
        factory: The source of a field's default that is made anew.
        optional: The source of the type of a field that has a default.
        allows_factory: False if a default cannot be made anew.
    """

    head: str
    factory: str = ""
    optional: str = ""

    def source(self, name: str, fields: Iterable[Field]) -> str:
        """Return the source of a class."""
        return "\n".join([self.head.format(name=name), *map(self._field, fields)])

    def _field(self, one: Field) -> str:
        if self.optional:
            hint = one.type if one.is_required else self.optional.format(one.type)
            return f"    {one.name}: {hint}"
        line = f"    {one.name}: {one.type}"
        if one.factory is not None:
            return f"{line} = {self.factory.format(one.factory)}"
        return line if one.default is None else f"{line} = {one.default}"


KINDS = {
    "dataclass": Kind(
        "from dataclasses import dataclass, field\n@dataclass\nclass {name}:",
        "field(default_factory={})",
    ),
    "frozen": Kind(
        "from dataclasses import dataclass, field\n@dataclass(frozen=True, slots=True)\n"
        "class {name}:",
        "field(default_factory={})",
    ),
    "model": Kind(
        "from pydantic import BaseModel, Field\nclass {name}(BaseModel):",
        "Field(default_factory={})",
    ),
    "namedtuple": Kind("from typing import NamedTuple\nclass {name}(NamedTuple):"),
    "typeddict": Kind(
        "from typing import NotRequired, TypedDict\nclass {name}(TypedDict):",
        optional="NotRequired[{}]",
    ),
    "struct": Kind(
        "import msgspec\nclass {name}(msgspec.Struct):", "msgspec.field(default_factory={})"
    ),
    "attrs": Kind("import attrs\n@attrs.define\nclass {name}:", "attrs.field(factory={})"),
}


@dataclass(frozen=True)
class Class:
    """One version of the code."""

    fields: tuple[Field, ...]
    name: str = "Order"
    module: str = "shop"


@dataclass(frozen=True)
class Version:
    """A version's class, in a hint, and the value that it makes.

    Attributes:
        module: The class's.
    """

    hint: Any
    make: Callable[[], Any]
    module: ModuleType | None = None

    def load(self) -> None:
        """Let the module be the one of its name, as in a process with this version."""
        if self.module is not None:
            sys.modules[self.module.__name__] = self.module

    def within(self, wrap: Callable[[Any], Any], put: Callable[[Any], Any]) -> Version:
        """Return the class inside of a type hint, and the value inside of another one."""
        return replace(self, hint=wrap(self.hint), make=lambda: put(self.make()))


@contextmanager
def as_field(kind: Kind, version: Version) -> Iterator[Version]:
    """Define a class with a field of a version's class."""
    holder = Class((Field("held", "Held"),), "Holder", "holding")
    with define(kind, holder, {}, Held=version.hint) as made:
        yield Version(made.hint, lambda: made.hint(held=version.make()), made.module)


@dataclass(frozen=True)
class Change:
    """A difference between two versions.

    Attributes:
        given: The fields of the value that the first version makes.
        expected: The fields of the value that the second version reads, without those with
            defaults; ``None`` for the same ones.
    """

    before: Class
    after: Class
    given: Mapping[str, Any] = field(default_factory=lambda: {"n": 1, "name": "a"})
    expected: Mapping[str, Any] | None = None

    def suits(self, kind: Kind) -> bool:
        """Tell whether a kind of class can change like this."""
        made_anew = any(one.factory for one in (*self.before.fields, *self.after.fields))
        return not made_anew or bool(kind.factory or kind.optional)

    @contextmanager
    def made(self, kind: Kind) -> Iterator[tuple[Version, Version]]:
        """Define both classes; the second one makes what is expected."""
        expected = self.given if self.expected is None else self.expected
        with (
            define(kind, self.before, self.given) as before,
            define(kind, self.after, expected) as after,
        ):
            yield before, after


N, NAME = Field("n", "int"), Field("name", "str")
FIRST, MIDDLE, LAST = (Field(name, "str") for name in ("first", "middle", "last"))
BEFORE = Class((N, NAME))
PERSON = Class((FIRST, MIDDLE, LAST))
NAMES = {"first": "Ada", "middle": "K", "last": "L"}

CHANGES = {
    "a field with a default is added": Change(BEFORE, Class((N, NAME, Field("x", "str", "'x'")))),
    "a field with a factory is added": Change(
        BEFORE, Class((N, NAME, Field("x", "list[str]", factory="list")))
    ),
    "a field is gone": Change(PERSON, Class((FIRST, LAST)), NAMES, {"first": "Ada", "last": "L"}),
    "the fields have another order": Change(PERSON, Class((LAST, FIRST, MIDDLE)), NAMES),
    "a type has None as well": Change(BEFORE, Class((Field("n", "int | None"), NAME))),
    "a type is wider": Change(
        BEFORE, Class((Field("n", "float"), NAME)), expected={"n": 1.0, "name": "a"}
    ),
    "the class has another name": Change(BEFORE, Class((N, NAME), name="Purchase")),
    "the class has moved": Change(BEFORE, Class((N, NAME), module="store")),
}


@contextmanager
def define(kind: Kind, of: Class, values: Mapping[str, Any], **names: object) -> Iterator[Version]:
    """Define a class in a module of its own, which is there until the end of the block."""
    module = ModuleType(of.module)
    vars(module).update(names)
    replaced = sys.modules.get(of.module)
    sys.modules[of.module] = module
    try:
        exec(compile(kind.source(of.name, of.fields), of.module, "exec"), vars(module))
        cls = getattr(module, of.name)
        yield Version(cls, lambda: cls(**values), module)
    finally:
        sys.modules.pop(of.module, None)
        if replaced is not None:
            sys.modules[of.module] = replaced


Defined = tuple[Any, Callable[[], tuple[Any, ...]]]


class Code:
    """A version of an application's code on a database.

    Args:
        define: Defines the workflow, and says what it is started with; one of ``PLACES`` say.
        version: Its class.
        url: The database.
        waits: True if the workflow waits for ever when the value is recorded.
        options: More arguments of ``Durable``.

    Attributes:
        seen: The values that the workflow has seen.
        ran: The bodies that have run.
    """

    def __init__(
        self,
        define: Callable[[Code], Defined],
        version: Version,
        url: str,
        *,
        waits: bool = False,
        **options: Any,
    ) -> None:
        self.durable = Durable(url, drain_timeout=0.0, **options)
        version.load()
        self.version = version
        self.seen: list[Any] = []
        self.ran: list[str] = []
        self.gate = Gate()
        if not waits:
            self.gate.open()
        self.hold = self.step("hold", self._hold)
        self.work, self.arguments = define(self)

    async def _hold(self) -> None:
        self.ran.append("hold")
        await self.gate.wait()

    def step(self, name: str, function: Any, **hints: Any) -> Any:
        """Decorate a function with such hints as a step."""
        return self.durable.step(name=name, retry=None)(_annotated(function, hints))

    def workflow(self, name: str, function: Any, **hints: Any) -> Any:
        """Decorate it as a workflow."""
        return self.durable.workflow(name=name)(_annotated(function, hints))

    def transaction(self, name: str, function: Any, **hints: Any) -> Any:
        """Decorate it as a transaction."""
        return self.durable.transaction(name=name)(_annotated(function, hints))

    async def make(self) -> Any:
        """Return the value, as the body of a function that is recorded."""
        self.ran.append("make")
        return self.version.make()

    async def take(self, value: Any) -> None:
        """Take the value, as the body of a function that is recorded."""
        self.ran.append("take")


def _annotated(function: Any, hints: dict[str, Any]) -> Any:
    names = ", ".join(name for name in hints if name != "return")
    scope: dict[str, Any] = {"function": function}
    exec(f"async def annotated({names}):\n    return await function({names})", scope)
    annotated = scope["annotated"]
    annotated.__annotations__ = hints
    return annotated


def _nothing() -> tuple[Any, ...]:
    return ()


def _step_result(code: Code) -> Defined:
    make = code.step("make", code.make, **{"return": code.version.hint})

    async def work() -> None:
        code.seen.append(await make())
        await code.hold()

    return code.workflow("work", work), _nothing


def _step_argument(code: Code) -> Defined:
    take = code.step("take", code.take, value=code.version.hint)

    async def work() -> None:
        await take(code.version.make())
        await code.hold()

    return code.workflow("work", work), _nothing


def _input(code: Code) -> Defined:
    async def work(value: Any) -> None:
        await code.hold()
        code.seen.append(value)

    workflow = code.workflow("work", work, value=code.version.hint)
    return workflow, lambda: (code.version.make(),)


def _child_result(code: Code) -> Defined:
    child = code.workflow("make", code.make, **{"return": code.version.hint})

    async def work() -> None:
        code.seen.append(await child())
        await code.hold()

    return code.workflow("work", work), _nothing


def _child_argument(code: Code) -> Defined:
    child = code.workflow("take", code.take, value=code.version.hint)

    async def work() -> None:
        await child(code.version.make())
        await code.hold()

    return code.workflow("work", work), _nothing


def _background_argument(code: Code) -> Defined:
    child = code.workflow("take", code.take, value=code.version.hint)

    async def work() -> None:
        await code.durable.background(child, code.version.make())
        await code.hold()

    return code.workflow("work", work), _nothing


def _handle_result(code: Code) -> Defined:
    child = code.workflow("make", code.make, **{"return": code.version.hint})

    async def work() -> None:
        handle = await code.durable.start_workflow(child)
        code.seen.append(await handle.get_result())
        await code.hold()

    return code.workflow("work", work), _nothing


def _transaction_result(code: Code) -> Defined:
    async def make() -> Any:
        await code.durable.session.execute(sa.text("SELECT 1"))
        return await code.make()

    make = code.transaction("make", make, **{"return": code.version.hint})

    async def work() -> None:
        code.seen.append(await make())
        await code.hold()

    return code.workflow("work", work), _nothing


def _transaction_argument(code: Code) -> Defined:
    take = code.transaction("take", code.take, value=code.version.hint)

    async def work() -> None:
        await take(code.version.make())
        await code.hold()

    return code.workflow("work", work), _nothing


PLACES: dict[str, Callable[[Code], Defined]] = {
    "a step's result": _step_result,
    "a step's argument": _step_argument,
    "a workflow's input": _input,
    "a child's result": _child_result,
    "a child's argument": _child_argument,
    "a background workflow's argument": _background_argument,
    "a handle's result": _handle_result,
    "a transaction's result": _transaction_result,
    "a transaction's argument": _transaction_argument,
}


READING_PLACES = {name: define for name, define in PLACES.items() if not name.endswith("argument")}


async def leave(code: Code) -> None:
    """Start the workflow, and stop in its middle."""
    async with code.durable as durable:
        with_id = durable.options(workflow_id=ID)
        handle = await with_id.start_workflow(code.work, *code.arguments())
        ended, reached = (
            asyncio.ensure_future(event)
            for event in (handle.get_result(), code.gate.reached.wait())
        )
        await asyncio.wait([ended, reached], return_when=asyncio.FIRST_COMPLETED)
        for future in (ended, reached):
            future.cancel()
        if ended.done() and not ended.cancelled():
            ended.result()
        assert code.gate.reached.is_set()


async def finish(code: Code) -> None:
    """Continue the workflow to its end; fail at once where it cannot continue."""
    with _warnings() as warnings:
        async with code.durable as durable:
            result = asyncio.create_task(result_of(durable, ID))
            await until(lambda: result.done() or warnings)
            assert not warnings, warnings
            await result


@contextmanager
def _warnings() -> Iterator[list[str]]:
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("asgi_durable")
    logger.addHandler(handler)
    try:
        yield warnings
    finally:
        logger.removeHandler(handler)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines of the library's log that are a warning or worse."""
    records = [one for one in caplog.records if one.name.startswith("asgi_durable")]
    return [one.getMessage() for one in records if one.levelno >= logging.WARNING]


async def stays_parked(durable: Durable, caplog: pytest.LogCaptureFixture) -> str:
    """Wait until the workflow cannot continue; return the one warning about it.

    It stays as it is, without further log lines, while its process looks for work again.
    """
    await until(lambda: warnings_in(caplog))
    looks = asyncio.create_task(beats(durable, 3))
    while not looks.done():
        executor_of(durable).beat_soon()
        await asyncio.sleep(POLL_SECONDS)
    (warning,) = warnings_in(caplog)
    assert await row_of(durable.url, ID, "state, output, error") == ("PENDING", None, None)
    return warning
