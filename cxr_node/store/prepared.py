"""SQL without SQLAlchemy's layers, for the statements of every instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ClauseElement, Connection
from sqlalchemy.exc import DBAPIError


class Prepared:
    """A statement that is made ready once, for what every instance passes: SQLAlchemy's way takes ten times as long.

    Its values go to the driver, and what the driver gives comes back, as they are: for columns of text and numbers, within
    `write`.
    """

    def __init__(self, statement: ClauseElement) -> None:
        self._statement = statement
        self._compiled: dict[str, tuple[str, list[str] | None]] = {}

    def execute(self, connection: Connection, values: Mapping[str, object]) -> Sequence[tuple[Any, ...]]:
        """Execute it; gives the rows that it has, if it is one that has any.

        Args:
            connection: from `write`.
            values: of all its parameters, always the same ones.

        Raises:
            SQLAlchemyError: as for any statement; it quotes no values.
        """
        dialect = connection.dialect
        if dialect.name not in self._compiled:
            compiled: Any = self._statement.compile(dialect=dialect, column_keys=list(values))
            self._compiled[dialect.name] = (str(compiled), compiled.positiontup if compiled.positional else None)
        sql, names = self._compiled[dialect.name]
        return drive(connection, sql, values if names is None else [values[name] for name in names])


def drive(connection: Connection, sql: str, values: Any) -> Sequence[tuple[Any, ...]]:
    """Execute SQL in the driver's own words; gives its rows. Errors are those that SQLAlchemy raises, without the values."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(sql, values)
        return cursor.fetchall() if cursor.description else ()
    except Exception as error:
        dialect = connection.dialect
        kind = dialect.loaded_dbapi.Error
        raise DBAPIError.instance(sql, None, error, kind, hide_parameters=True, dialect=dialect) from error
    finally:
        cursor.close()
