"""Microseconds that values take on their way into the log and back, beside plain libraries.

Each value is written and read once: a first run writes it and gets it back, a replay reads it.
"Self-describing" is the form in which an unannotated function's result is written.

    python -m benchmarks.codec [--short] [--json FOLDER]
"""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pydantic

from asgi_durable import Durable, JsonCodec
from asgi_durable.codec.sealing.sealer import Sealer
from asgi_durable.codec.typed.adapters import adapter_for
from asgi_durable.codec.values import Values
from asgi_durable.payloads import Payloads
from benchmarks.support.harness import (
    Notes,
    cpu_seconds,
    in_turn,
    median_of,
    median_ratio,
    options,
    print_table,
    version_of,
    write_json,
)

STEPS = 10
FORMS = ("hint, first run", "hint, replay", "describes itself")
LIBRARIES = ("msgspec", "pydantic", "orjson", "pickle")


@dataclasses.dataclass
class Payment:
    """Five fields, as a step returns them."""

    id: str
    amount: int
    currency: str
    captured: bool
    note: str | None = None


class PaymentModel(pydantic.BaseModel):
    """The same fields."""

    id: str
    amount: int
    currency: str
    captured: bool
    note: str | None = None


FIELDS: dict[str, Any] = {
    "id": "ch_3MmlLrLkdIwHu7ix0snN0B15",
    "amount": 1099,
    "currency": "eur",
    "captured": True,
    "note": None,
}
VALUES: dict[str, tuple[Any, Any]] = {
    "int": (int, 1099),
    "str": (str, "ch_3MmlLrLkdIwHu7ix0snN0B15"),
    "dict, 5 members": (dict[str, Any], FIELDS),
    "dataclass, 5 fields": (Payment, Payment(**FIELDS)),
    "pydantic model, 5 fields": (PaymentModel, PaymentModel(**FIELDS)),
    "100 dataclasses": (list[Payment], [Payment(**FIELDS) for _ in range(100)]),
}


def new_values() -> Values:
    """Return what an engine writes values with."""
    codec = JsonCodec()
    for hint, _ in VALUES.values():
        codec.register(hint)
    return Values(codec, Sealer(Payloads()))


def of_the_library(hint: Any, value: Any) -> dict[str, Callable[[], object]]:
    """Return what writes and reads a value, by its form."""
    values, adapter = new_values(), adapter_for(hint)
    written = values.write(value, adapter)[0]
    codec = values.codec
    return {
        "hint, first run": lambda: values.write(value, adapter),
        "hint, replay": lambda: values.read(written, adapter),
        "describes itself": lambda: codec.decode(codec.encode(value)),
    }


def of_others(hint: Any, value: Any) -> dict[str, Callable[[], object]]:
    """Return what writes and reads a value in plain libraries, by their names."""
    encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(hint).decode
    model = pydantic.TypeAdapter(hint)
    to_json, from_json = model.serializer.to_json, model.validator.validate_json
    found: dict[str, Callable[[], object]] = {
        "pydantic": lambda: from_json(to_json(value)),
        "pickle": lambda: pickle.loads(pickle.dumps(value)),
    }
    if hint is not PaymentModel:
        found["msgspec"] = lambda: decode(encode(value))
    if version_of("orjson") is not None:
        import orjson  # noqa: PLC0415  where it is installed

        if hint is not PaymentModel:
            found["orjson"] = lambda: orjson.loads(orjson.dumps(value))
    return found


def microseconds(function: Callable[[], object], seconds: float) -> float:
    """Return the processor time that a call takes, measured for about so long."""
    timer = timeit.Timer(function, timer=time.process_time)
    once = max(timer.timeit(20) / 20, 1e-8)
    count = max(1, round(seconds / once / 3))
    return min(timer.repeat(3, count)) / count * 1e6


def step_share(seconds: float) -> float:
    """Return the share of values in the processor time of a step that returns a dataclass."""
    values, adapter = new_values(), adapter_for(Payment)
    payment = VALUES["dataclass, 5 fields"][1]
    coding = microseconds(lambda: values.write(payment, adapter), seconds)

    async def main(url: str) -> float:
        durable = Durable(url)

        @durable.step
        async def charge(amount: int) -> Payment:
            return Payment(**FIELDS | {"amount": amount})

        @durable.workflow
        async def work() -> None:
            for amount in range(STEPS):
                await charge(amount)

        async def call(until: float) -> int:
            count = 0
            while time.monotonic() < until:
                await work()
                count += STEPS
            return count

        async with durable:
            await call(time.monotonic() + 0.2)
            before, until = cpu_seconds(), time.monotonic() + seconds * 4
            steps = sum(await asyncio.gather(*(call(until) for _ in range(128))))
            return (cpu_seconds() - before) / steps * 1e6

    with tempfile.TemporaryDirectory() as folder:
        return coding / asyncio.run(main(f"sqlite:///{Path(folder) / 'steps.db'}"))


def main() -> None:
    """Measure, and print."""
    chosen = options(__doc__).parse_args()
    rounds, seconds = chosen.rounds or (3 if chosen.short else 7), 0.1 if chosen.short else 0.5
    notes = Notes()
    if version_of("orjson") is None:
        notes.leave_out("orjson", "it is not installed")
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name, (hint, value) in VALUES.items():
        contestants = of_the_library(hint, value) | of_others(hint, value)
        figures: dict[str, list[dict[str, float]]] = {each: [] for each in contestants}
        for _, each in in_turn(list(contestants), rounds):
            taken = microseconds(contestants[each], seconds / 5)
            figures[each].append({"us": taken})
        results[name] = figures
    columns = (*FORMS, *LIBRARIES)
    print_table(
        "µs to write and read",
        columns,
        (
            (name, [median_of(figures.get(each, ()), "us") for each in columns])
            for name, figures in results.items()
        ),
    )
    print_table(
        "÷ msgspec, of the model ÷ pydantic",
        FORMS,
        ((name, _ratios(figures)) for name, figures in results.items()),
    )
    share = [step_share(seconds) for _ in range(1 if chosen.short else 3)]
    middle = sorted(share)[len(share) // 2]
    print(f"\nShare of the values in the processor time of a step with a dataclass: {middle:.0%}")
    notes.print()
    write_json(chosen.json, "codec", {"values": results, "share": share}, notes)


def _ratios(figures: dict[str, list[dict[str, float]]]) -> list[float | None]:
    plain = figures.get("msgspec") or figures["pydantic"]
    return [median_ratio(figures[form], plain, "us") for form in FORMS]


if __name__ == "__main__":
    main()
