"""The log of the statements that a Postgres server of the tests has executed."""

from __future__ import annotations

import re

from support.databases.postgres import PostgresServer

STATEMENT = re.compile(r"LOG:  (?:statement|execute [^:]*|fastpath function call): (.*)")


def logging_statements(url: str) -> str:
    """Return a URL whose connections the server logs every statement of."""
    return f"{url}&log_statement=all&log_parameter_max_length=0"


class StatementLog:
    """The statements that the server has executed since it was last asked."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._read = len(server.log)

    def new_statements(self) -> list[str]:
        """Return them in order."""
        log = self._server.log
        new, self._read = log[self._read :], len(log)
        return STATEMENT.findall(new)
