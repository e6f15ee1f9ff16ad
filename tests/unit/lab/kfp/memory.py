"""The server's store on SQLite in memory: the same SQL, without a database server."""

from __future__ import annotations

import sqlite3
from typing import Any

import pymysql

from tests.lab.kfp.kfp_server.store import Store


class Cursor:
    """A cursor that reads and fails as PyMySQL's does."""

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self.cursor = cursor

    def __enter__(self) -> Cursor:
        return self

    def __exit__(self, *_: object) -> None:
        self.cursor.close()

    def execute(self, statement: str, values: tuple[Any, ...] = ()) -> None:
        """Run a statement."""
        try:
            self.cursor.execute(statement.replace("%s", "?"), values)
        except sqlite3.IntegrityError as error:
            raise pymysql.err.IntegrityError(str(error)) from error

    def fetchall(self) -> list[Any]:
        """All rows."""
        return self.cursor.fetchall()


class Connection:
    """A connection that hands out such cursors."""

    def __init__(self) -> None:
        self.database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self.database.create_function("GET_LOCK", 2, lambda *_: 1)

    def cursor(self) -> Cursor:
        """A cursor."""
        return Cursor(self.database.cursor())


def store() -> Store:
    """A store with empty tables."""
    made = Store(Connection)
    made.prepare()
    return made
