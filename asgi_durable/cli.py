"""The command ``asgi-durable``."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from asgi_durable.durable import Durable
from asgi_durable.errors import DurableError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status.

    Args:
        arguments: The arguments of the command; those of the process by default.

    Returns:
        0 if it succeeded, 1 after an error.
    """
    parser = argparse.ArgumentParser(prog="asgi-durable", description=__doc__)
    commands = parser.add_subparsers(required=True)
    migrate = commands.add_parser(
        "migrate", help="create a database's tables, or bring them up to date"
    )
    migrate.add_argument(
        "url", nargs="?", help="the database; $ASGI_DURABLE_URL by default", metavar="URL"
    )
    migrate.add_argument(
        "--application-url", help="the application's own database, if that is not the same"
    )
    migrate.set_defaults(run=_migrate)
    options = parser.parse_args(arguments)
    try:
        asyncio.run(options.run(options))
    except DurableError as error:
        sys.stderr.write(f"asgi-durable: {error}\n")
        return 1
    return 0


async def _migrate(options: argparse.Namespace) -> None:
    await Durable(options.url, application_url=options.application_url).migrate()
    sys.stdout.write("The tables are up to date.\n")
