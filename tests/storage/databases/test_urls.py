"""URLs of databases: texts that are no URLs, the adapter for a scheme, and URLs in messages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asgi_durable import Durable, DurableUsageError
from asgi_durable.storage.urls import shown


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("orders.db", r"'orders\.db' is not the URL.*sqlite:///orders\.db"),
        ("/srv/orders.db", r"'/srv/orders\.db' is not the URL.*sqlite:////srv/orders\.db"),
        (r"C:\srv\orders.db", r"sqlite:///C:\\srv\\orders\.db"),
        ("C:/srv/orders.db", r"sqlite:///C:/srv/orders\.db"),
        (":memory:", "sqlite:///:memory:"),
        ("sqlite:/x.db", "write sqlite:////x.db"),
        ("sqlite:x.db", "write sqlite:///x.db"),
        ("postgresql:/host/shop", "write postgresql://user:password@host/database"),
        ("://host", "write sqlite:///"),
        ("mysql://host/shop", "no storage adapter for 'mysql'; there are postgres, postgresql"),
        ("postgresql+pg8000://host/shop", r"no storage adapter for 'postgresql\+pg8000'"),
        (Path("orders.db"), r"a string such as 'sqlite:///orders\.db'.*got a PosixPath"),
    ],
)
def test_what_is_no_url_is_refused_at_once_with_one_that_is(url: str, named: str) -> None:
    with pytest.raises(DurableUsageError, match=named):
        Durable(url)
    with pytest.raises(DurableUsageError, match=named):
        Durable("sqlite://", application_url=url)


@pytest.mark.parametrize(
    "url",
    [
        "user:s3cret@host/shop",
        "postgres:s3cret@host/shop",
        "user:s3cret?@host/shop?password=s3cret",
        "host/shop?password=s3cret",
        "host=db user=me password='s3cret s3cret'",
        "mysql://me:s3cret@s3cret@host/shop",
    ],
)
def test_no_refusal_shows_a_password(url: str) -> None:
    with pytest.raises(DurableUsageError) as refused:
        Durable(url)

    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://me:s3cret@db:5432/shop?sslmode=require", "postgresql://***@db:5432/shop"),
        ("postgresql+asyncpg://db/shop", "postgresql+asyncpg://db/shop"),
        ("sqlite:////srv/a@b.db?synchronous=FULL", "sqlite:////srv/a@b.db?synchronous=FULL"),
    ],
)
def test_messages_show_the_rest_of_a_url(url: str, expected: str) -> None:
    assert shown(url) == expected


WITHOUT = """
import sys
sys.modules["asyncpg"] = None
import asyncio
from asgi_durable import Durable, DurableUsageError
for settings in ({"url": sys.argv[1]}, {"application_url": sys.argv[1], "url": "sqlite://"}):
    try:
        asyncio.run(Durable(**settings).migrate())
    except DurableUsageError as error:
        print(error)
"""


def test_a_driver_that_is_not_installed_is_named_with_its_extra() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, "postgresql://127.0.0.1/shop"],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        check=True,
    )

    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("needs the package 'asyncpg'" in line for line in lines)
    assert all("pip install 'asgi-durable[postgres]'" in line for line in lines)
