"""Column types with equal behavior on SQLite, PostgreSQL and MariaDB."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, DateTime, Dialect, String, Text, TypeDecorator, func, literal_column
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeEngine


class UTCDateTime(TypeDecorator[datetime]):
    """A time with microseconds. In Python, it is timezone-aware and in UTC.

    SQLite: ISO text, which sorts by time. PostgreSQL: ``timestamptz``. MariaDB: ``DATETIME(6)`` holding UTC,
    since its ``DATETIME`` drops microseconds and its ``TIMESTAMP`` ends in 2106.
    """

    impl = (
        DateTime()
        .with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
        .with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
    )
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name == "postgresql":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def bind_processor(self, dialect: Dialect) -> Callable[[datetime | None], Any] | None:
        # _to_text makes the same strings as SQLAlchemy's own type in a third of the time; both types read equally fast
        return _to_text if dialect.name == "sqlite" else super().bind_processor(dialect)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], datetime | None] | None:
        return _from_text if dialect.name == "sqlite" else _in_utc

    def column_expression(self, column: ColumnElement[datetime]) -> ColumnElement[datetime]:
        # PostgreSQL converts to UTC, and returns a timestamp without time zone. Other clients of PgBouncer may have set
        # another time zone, in which times of the years 1 and 9999 can leave the range of Python.
        has_timezone = self.impl_instance.timezone  # type: ignore[attr-defined]
        return func.timezone(literal_column("'UTC'"), column, type_=column.type) if has_timezone else column


def _to_text(value: datetime | None) -> str | None:
    return None if value is None else value.astimezone(UTC).isoformat(" ", "microseconds")[:-6]


def _from_text(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value + "+00:00")


_NAIVE_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 (databases return naive times in UTC)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _in_utc(value: datetime | None) -> datetime | None:
    # same as value.replace(tzinfo=UTC), in a tenth of the time; this halves the time to read a long history
    return None if value is None else _EPOCH + (value - _NAIVE_EPOCH)


def identifier(length: int) -> TypeEngine[str]:
    """Return the type of ids, which are compared byte by byte.

    The collation is ``C`` on PostgreSQL, ``BINARY`` on SQLite, and that of the tables on MariaDB:
    ``utf8mb4_nopad_bin``, because collations with padding treat 'abc' and 'abc ' as equal. The package checks the
    length before it executes SQL. On PostgreSQL the type has no length, because VARCHAR truncates trailing spaces
    without an error.
    """
    return String(length).with_variant(Text(collation="C"), "postgresql")


LongText = Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
"""Text of any length, including JSON. TEXT on MariaDB is limited to 64 KB."""
