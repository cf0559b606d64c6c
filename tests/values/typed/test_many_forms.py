"""The largest cost of a replay that diverges."""

from __future__ import annotations

import dataclasses

from asgi_durable.codec.json_codec import JsonCodec
from asgi_durable.codec.typed.canonical import MAX_FORMS_BYTES, Canonical, possible_forms


@dataclasses.dataclass
class Row:
    text: str
    a: int = 0
    b: int = 0
    c: int = 0
    d: int = 0
    e: int = 0
    f: int = 0
    g: int = 0
    h: int = 0


def _forms(row: Row) -> list[bytes]:
    def form_of(canonical: Canonical) -> bytes:
        return canonical.arguments((row,), {}, {}, ("row",))

    return list(possible_forms(JsonCodec().encode, form_of))


def test_large_arguments_are_not_tried_in_every_form() -> None:
    forms = _forms(Row("x" * (MAX_FORMS_BYTES // 4)))

    assert len(forms) <= 12
    assert all(any(b'"%b":0' % name in form for form in forms) for name in (b"a", b"h"))


def test_small_arguments_are_tried_in_every_form() -> None:
    assert len(set(_forms(Row("x")))) == 2**8
