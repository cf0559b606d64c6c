"""Time zones in the step log: which are recorded, and how their names are looked up.

A zone is read from the time zone database alone. ``ZoneInfo`` by itself would take any name
for a path, and for a package below ``tzdata.zoneinfo`` that it imports.
"""

from __future__ import annotations

import datetime
import functools
import importlib.util
import re
import zoneinfo
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asgi_durable.codec.tagged.unrecordable import UnrecordableError

__all__ = ["pack_zone", "put_zone", "zone_name", "zone_named"]

_NAME = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,5}")
MAX_NAME_CHARACTERS = 100
# Classes of fixed offsets that libraries put into the datetimes that they return. A
# `datetime.timezone` comes back in their place: the same instant, and the same arithmetic.
_FIXED_OFFSETS = frozenset(
    {
        "bson.tz_util.FixedOffset",
        "dateutil.tz.tz.tzoffset",
        "dateutil.tz.tz.tzutc",
        "psycopg2.tz.FixedOffsetTimezone",
        "pydantic_core._pydantic_core.TzInfo",
        "pytz.UTC",
        "pytz._FixedOffset",
    }
)
_ADVICE = ": use zoneinfo.ZoneInfo, or datetime.timezone for a fixed offset"


def pack_zone(value: datetime.datetime | datetime.time) -> dict[str, Any]:
    """Return what ISO 8601 leaves out: the fold, the zone behind the offset, its name.

    Raises:
        UnrecordableError: The zone would come back as something else.
    """
    packed: dict[str, Any] = {"fold": 1} if value.fold else {}
    zone = value.tzinfo
    kind = type(zone)
    if zone is None or zone is datetime.UTC:
        return packed
    if isinstance(zone, datetime.timezone):
        packed |= _given_name(zone)
    elif kind is zoneinfo.ZoneInfo:
        packed["zone"] = zone_name(zone)
    elif f"{kind.__module__}.{kind.__qualname__}" not in _FIXED_OFFSETS:
        raise UnrecordableError(kind, _ADVICE)
    return packed


def put_zone(value: Any, packed: dict[str, Any]) -> Any:
    """Return a datetime or time with what :func:`pack_zone` returned."""
    zone = value.tzinfo
    if "zone" in packed:
        zone = zone_named(packed["zone"])
    elif "tzname" in packed:
        zone = datetime.timezone(value.utcoffset(), packed["tzname"])
    return value.replace(tzinfo=zone, fold=packed.get("fold", 0))


def zone_named(name: str) -> zoneinfo.ZoneInfo:
    """Return the zone of this name.

    Raises:
        ValueError: The time zone database here has none.
    """
    _refuse_unknown(name)
    return zoneinfo.ZoneInfo(name)


def zone_name(zone: Any) -> str:
    """Return the name that a zone is found again by.

    Raises:
        UnrecordableError: It has none.
    """
    name: str | None = zone.key
    if name is None:
        raise UnrecordableError(zoneinfo.ZoneInfo, ": the zone has no key")
    try:
        zone_named(name)
    except Exception:
        advice = f": the time zone database has no {name!r}"
        raise UnrecordableError(zoneinfo.ZoneInfo, advice) from None
    return name


def _given_name(zone: Any) -> dict[str, str]:
    # The arguments that the offset was made with: itself and, if it has one, its name.
    arguments = zone.__getinitargs__()
    return {"tzname": arguments[1]} if len(arguments) > 1 else {}


@functools.lru_cache(maxsize=1024)
def _refuse_unknown(name: str) -> None:
    """Raise ``ValueError`` if a name is no file of the time zone database."""
    is_name = len(name) <= MAX_NAME_CHARACTERS and _NAME.fullmatch(name)
    if not is_name or not any((folder / name).is_file() for folder in _folders()):
        msg = f"the time zone database has no {name!r}"
        raise ValueError(msg)


def _folders() -> Iterator[Path]:
    yield from map(Path, zoneinfo.TZPATH)
    # The package is found, not imported.
    spec = importlib.util.find_spec("tzdata")
    for location in (spec and spec.submodule_search_locations) or ():
        yield Path(location) / "zoneinfo"
