"""The names of ``import asgi_durable``, and the packages that it does not load."""

from __future__ import annotations

import subprocess
import sys

import asgi_durable


def test_every_public_name_exists_and_is_listed_once_in_order() -> None:
    names = asgi_durable.__all__

    assert names == sorted(set(names))
    assert all(hasattr(asgi_durable, name) for name in names)


def test_nothing_public_is_left_out_of_the_list() -> None:
    public = {
        name
        for name, value in vars(asgi_durable).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("asgi_durable")
    }

    assert public == set(asgi_durable.__all__)


def test_the_import_loads_no_framework_no_driver_and_no_sdk() -> None:
    heavy = {"aiosqlite", "fastapi", "litestar", "opentelemetry.sdk", "pydantic", "sqlalchemy"}
    heavy |= {"backports.zstd", "cryptography", "opentelemetry.propagate", "zstandard"}
    script = f"import sys, asgi_durable; print(sorted({heavy!r} & set(sys.modules)))"

    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert result.stdout.strip() == "[]"
