"""Column types that behave alike on SQLite, PostgreSQL and MariaDB."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, DateTime, Dialect, String, Text, TypeDecorator
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine

__all__ = ["BigInt", "LongText", "UTCDateTime", "identifier"]

BigInt = BigInteger
"""Counters and versions."""


class _InUTC(FunctionElement[datetime]):
    """A column of times, read in UTC whatever the connection's time zone is."""

    name = "in_utc"
    inherit_cache = True

    def __init__(self, column: ColumnElement[datetime]) -> None:
        super().__init__(column)
        self.type = column.type


@compiles(_InUTC)
def _as_it_is(element: _InUTC, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(element.clauses, **options)


@compiles(_InUTC, "postgresql")
def _without_zone(element: _InUTC, compiler: SQLCompiler, **options: Any) -> str:
    # In another zone the years 1 and 9999 leave Python's range, and behind PgBouncer the zone is anybody's: the
    # database converts, and hands out a plain timestamp.
    return f"timezone('UTC', {compiler.process(element.clauses, **options)})"


class UTCDateTime(TypeDecorator[datetime]):
    """A moment with microseconds, aware and in UTC on the Python side.

    SQLite: ISO text, which sorts by time. PostgreSQL: ``timestamptz``. MariaDB: ``DATETIME(6)`` holding UTC,
    since its ``DATETIME`` drops microseconds and its ``TIMESTAMP`` ends in 2106.
    """

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[datetime]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.TIMESTAMP(timezone=True))
        if dialect.name in {"mysql", "mariadb"}:
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(DateTime())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name == "postgresql":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def bind_processor(self, dialect: Dialect) -> Callable[[datetime | None], Any] | None:
        # SQLite's is SQLAlchemy's own text, made without its detours: a third of the time, and so are the results
        return _to_text if dialect.name == "sqlite" else super().bind_processor(dialect)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], datetime | None] | None:
        return _from_text if dialect.name == "sqlite" else _in_utc

    def column_expression(self, column: ColumnElement[datetime]) -> ColumnElement[datetime]:
        return _InUTC(column)


def _to_text(value: datetime | None) -> str | None:
    return None if value is None else value.astimezone(UTC).isoformat(" ", "microseconds")[:-6]


def _from_text(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value + "+00:00")


_NAIVE_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 (what databases hand out is naive, and UTC)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _in_utc(value: datetime | None) -> datetime | None:
    # value.replace(tzinfo=UTC), in a tenth of the time: half of what a long history takes
    return None if value is None else _EPOCH + (value - _NAIVE_EPOCH)


def identifier(length: int) -> TypeEngine[str]:
    """Return the type of an id, under which two ids that differ are different.

    Byte by byte: ``C`` on PostgreSQL, SQLite's ``BINARY``; on MariaDB the tables' own ``utf8mb4_nopad_bin``, since
    every other collation there takes 'abc' and 'abc ' for the same. The length is checked before any SQL;
    PostgreSQL, whose VARCHAR cuts trailing spaces in silence, gets none.
    """
    return String(length).with_variant(Text(collation="C"), "postgresql")


LongText = Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
"""Text of any length, JSON text among it: MariaDB's TEXT ends at 64 KB."""
