"""Reads modules, classes and exceptions without running any code of theirs.

An attribute access can run code: a module's ``__getattr__``, a property, a metaclass, the import
behind a lazy module. Here everything is read from the dictionaries that Python itself keeps, and
exceptions are made by the built-in classes' own code.
"""

from __future__ import annotations

import builtins
import pathlib
import sys
from types import MemberDescriptorType, ModuleType
from typing import Any

__all__ = [
    "attributes_of",
    "base_names",
    "bases_of",
    "build",
    "class_name",
    "find_class",
    "is_exception",
    "is_exception_class",
    "set_arguments",
    "set_attributes",
    "set_cause",
    "slots_of",
]

_module: Any = ModuleType
_module_names: Any = vars(_module)["__dict__"].__get__
_class_names: Any = type.__dict__["__dict__"].__get__
_class_bases: Any = type.__dict__["__mro__"].__get__
_class_module: Any = type.__dict__["__module__"].__get__
_class_qualname: Any = type.__dict__["__qualname__"].__get__
_class_flags: Any = type.__dict__["__flags__"].__get__
_error_names: Any = BaseException.__dict__["__dict__"].__get__
_set_error_arguments: Any = BaseException.__dict__["args"].__set__
_set_error_cause: Any = BaseException.__dict__["__cause__"].__set__

# Looked up by identity: comparing or hashing a class may run its metaclass's code.
_BUILTIN = {
    id(cls): cls
    for cls in vars(builtins).values()
    if isinstance(cls, type) and issubclass(cls, BaseException)
}
# The constructors of these look into their arguments, and may run code of those.
_CURIOUS = (BaseExceptionGroup, OSError, SyntaxError, UnicodeError)
_HEAP_TYPE = 1 << 9
_PATH = type(pathlib.Path())


def class_name(cls: type) -> str:
    """Return the name that a class itself says it has, ``"module:QualName"``."""
    return f"{_class_module(cls)}:{_class_qualname(cls)}"


def bases_of(cls: type) -> tuple[type, ...]:
    """Return a class and its bases, in the order of their look-up."""
    bases: tuple[type, ...] = _class_bases(cls)
    return bases


def base_names(cls: type) -> list[str]:
    """Return the names of a class and its bases, those of Python's own exceptions left out."""
    return [class_name(base) for base in _class_bases(cls) if id(base) not in _BUILTIN]


def is_exception_class(found: Any) -> bool:
    """Tell whether something is a class that derives from ``Exception``."""
    return _is_class(found) and _derives_from(found, Exception)


def is_exception(value: object) -> bool:
    """Tell whether something is an exception, of whatever kind."""
    return _derives_from(type(value), BaseException)


def find_class(name: str) -> type | None:
    """Return the class of this name in a loaded module, if it calls itself so too.

    Args:
        name: ``"module:QualName"``.
    """
    module_name, _, qualified_name = name.partition(":")
    module = sys.modules.get(module_name)
    if not _derives_from(type(module), ModuleType):
        return None
    names = _module_names(module)
    found: Any = None
    for part in qualified_name.split("."):
        found = names.get(part)
        if not _is_class(found):
            return None
        names = _class_names(found)
    return found if _calls_itself(found, module_name, qualified_name) else None


def build(cls: type, arguments: list[Any]) -> BaseException:
    """Return an exception of this class, made by the code of its built-in base alone.

    Raises:
        TypeError: The built-in class refuses the arguments, or might run code of theirs.
        ValueError: The built-in class refuses the arguments.
    """
    builtin: Any = next(base for base in bases_of(cls) if id(base) in _BUILTIN)
    if issubclass(builtin, _CURIOUS) and not all(map(_is_harmless, arguments)):
        msg = f"{builtin.__name__} is made of values of Python's own only"
        raise TypeError(msg)
    error: BaseException = builtin.__new__(cls, *arguments)
    builtin.__init__(error, *arguments)
    return error


def attributes_of(error: BaseException) -> dict[str, Any]:
    """Return the dictionary of an exception's own attributes, to read and to change."""
    names: dict[str, Any] = _error_names(error)
    return names


def slots_of(cls: type) -> dict[str, Any]:
    """Return the attributes of a class that live outside the dictionary, by name.

    Those are the ``__slots__`` of classes in Python, and the fields of built-in ones.
    """
    found: dict[str, Any] = {}
    for base in reversed(bases_of(cls)):
        slots = _BUILTIN_SLOTS.get(id(base))
        found.update(_members_of(base) if slots is None else slots)
    return found


def set_attributes(error: BaseException, attributes: dict[str, Any]) -> None:
    """Set attributes, past the class's own ``__setattr__`` and properties."""
    slots, own = slots_of(type(error)), attributes_of(error)
    for name, value in attributes.items():
        if name in slots:
            slots[name].__set__(error, value)
        else:
            own[name] = value


def set_arguments(error: BaseException, arguments: tuple[Any, ...]) -> None:
    """Set ``error.args``."""
    _set_error_arguments(error, arguments)


def set_cause(error: BaseException, cause: BaseException) -> None:
    """Set ``error.__cause__``."""
    _set_error_cause(error, cause)


def _calls_itself(cls: type, module_name: str, qualified_name: str) -> bool:
    module = _class_module(cls)
    return type(module) is str and (module, _class_qualname(cls)) == (module_name, qualified_name)


def _members_of(cls: type) -> dict[str, Any]:
    names = _class_names(cls)
    return {name: item for name, item in names.items() if type(item) is MemberDescriptorType}


_BUILTIN_SLOTS: dict[int, dict[str, Any]] = {
    **{identity: _members_of(cls) for identity, cls in _BUILTIN.items()},
    # Every exception has the fields of these.
    id(BaseException): {},
    id(object): {},
}


def _is_class(found: object) -> bool:
    return _derives_from(type(found), type)


def _derives_from(cls: type, base: type) -> bool:
    return any(other is base for other in _class_bases(cls))


def _is_harmless(value: Any) -> bool:
    """Tell whether looking into a value runs no code but Python's own."""
    kind = type(value)
    if kind is list or kind is tuple:
        return all(_is_harmless(item) for item in value)
    return is_exception(value) or kind is _PATH or not _class_flags(kind) & _HEAP_TYPE


def has_own_text(cls: type) -> bool:
    """Tell whether ``str()`` of a class's exceptions runs code that is not Python's own."""
    base = next(base for base in _class_bases(cls) if "__str__" in _class_names(base))
    return id(base) not in _BUILTIN
