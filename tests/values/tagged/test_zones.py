"""Datetimes and their zones: the zone that comes back is the one that was recorded."""

from __future__ import annotations

import datetime
import io
import sys
import zoneinfo
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from asgi_durable import DecodeError, EncodeError, JsonCodec

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
HOUR = datetime.timedelta(hours=1)


def through(value: Any) -> Any:
    codec = JsonCodec()
    return codec.decode(codec.encode(value))


@pytest.mark.parametrize("fold", [0, 1])
@pytest.mark.parametrize("zone", [BERLIN, datetime.UTC, None, datetime.timezone(HOUR)])
def test_zone_and_fold_come_back(zone: Any, fold: int) -> None:
    value = datetime.datetime(2026, 10, 25, 2, 30, tzinfo=zone, fold=fold)

    for each in (value, value.timetz()):
        restored = through(each)

        assert restored == each
        assert (restored.fold, repr(restored.tzinfo)) == (fold, repr(zone))
    assert through(value).utcoffset() == value.utcoffset()


def test_a_fixed_offset_keeps_its_name() -> None:
    zone = datetime.timezone(-HOUR * 3.5, "NST")

    assert through(datetime.datetime(2026, 1, 1, tzinfo=zone)).tzname() == "NST"
    assert through(datetime.time(1, tzinfo=zone)).tzname() == "NST"
    assert through(zone).tzname(None) == "NST"


def test_a_fixed_offset_of_a_library_comes_back_as_pythons_own() -> None:
    read = TypeAdapter(datetime.datetime).validate_json('"2026-01-01T12:00:00+02:00"')
    assert type(read.tzinfo) is not datetime.timezone

    restored = through(read)

    assert restored == read
    assert restored.tzinfo == datetime.timezone(2 * HOUR)


class Zone(zoneinfo.ZoneInfo):
    pass


def test_a_class_derived_from_zoneinfo_is_refused() -> None:
    with pytest.raises(EncodeError, match=r"Zone at .*use zoneinfo\.ZoneInfo"):
        JsonCodec().encode(datetime.datetime(2026, 1, 1, tzinfo=Zone("Europe/Berlin")))


def test_a_zone_that_no_name_leads_to_is_refused() -> None:
    (folder,) = [Path(each) for each in zoneinfo.TZPATH if (Path(each) / "Europe/Berlin").exists()][
        :1
    ]
    data = io.BytesIO((folder / "Europe/Berlin").read_bytes())
    nameless = zoneinfo.ZoneInfo.from_file(data)
    data.seek(0)
    misnamed = zoneinfo.ZoneInfo.from_file(data, key="Nowhere/Town")

    with pytest.raises(EncodeError, match="has no key"):
        JsonCodec().encode(datetime.datetime(2026, 1, 1, tzinfo=nameless))
    with pytest.raises(EncodeError, match="has no 'Nowhere/Town'"):
        JsonCodec().encode([datetime.time(1, tzinfo=misnamed)])


@pytest.fixture
def zone_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A time zone database in a Python package, as on systems without their own."""
    source = next(Path(each) for each in zoneinfo.TZPATH if (Path(each) / "UTC").exists()) / "UTC"
    folder = tmp_path / "tzdata" / "zoneinfo" / "Somewhere"
    folder.mkdir(parents=True)
    (folder / "Town").write_bytes(source.read_bytes())
    for package in (folder, folder.parent, folder.parent.parent):
        (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    former = zoneinfo.TZPATH
    loaded = {name: sys.modules.pop(name) for name in [*sys.modules] if name.startswith("tzdata")}
    zoneinfo.reset_tzpath(to=())
    yield
    zoneinfo.reset_tzpath(to=former)
    for name in [name for name in sys.modules if name.startswith("tzdata")]:
        del sys.modules[name]
    sys.modules.update(loaded)


@pytest.mark.usefixtures("zone_package")
def test_a_zone_is_found_in_the_package_and_no_other_is_looked_for() -> None:
    row = '{"$":"datetime","v":"2026-01-01T00:00:00","zone":"%s"}'
    with pytest.raises(DecodeError, match="has no 'Somewhere/Else'"):
        JsonCodec().decode(row.encode() % b"Somewhere/Else")
    assert "tzdata" not in sys.modules

    assert JsonCodec().decode(row.encode() % b"Somewhere/Town").tzinfo.key == "Somewhere/Town"
