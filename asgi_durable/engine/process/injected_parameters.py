"""Which parameters a framework fills anew for every request, told by their classes."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable

__all__ = ["filled_with"]


def filled_with(*classes: type) -> Callable[[inspect.Parameter, object], bool]:
    """Return a rule for parameters whose type hint is one of these classes or a subclass.

    ``Annotated`` and the arguments of a generic class make no difference.
    """

    def is_ambient(_parameter: inspect.Parameter, hint: object) -> bool:
        bare = typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
        bare = typing.get_origin(bare) or bare
        return isinstance(bare, type) and issubclass(bare, classes)

    return is_ambient
