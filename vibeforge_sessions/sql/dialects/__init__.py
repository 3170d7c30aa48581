"""Database dialects: every difference between the supported databases."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Dialect

from vibeforge_sessions.errors import ConfigurationError
from vibeforge_sessions.sql.dialects.base import DatabaseDialect
from vibeforge_sessions.sql.dialects.mariadb import MariaDBDialect
from vibeforge_sessions.sql.dialects.postgresql import PostgreSQLDialect
from vibeforge_sessions.sql.dialects.sqlite import SQLiteDialect

DATABASE_DIALECTS: Final[tuple[DatabaseDialect, ...]] = (SQLiteDialect(), PostgreSQLDialect(), MariaDBDialect())
_BY_NAME: Final = {name: each for each in DATABASE_DIALECTS for name in each.names}


def database_dialect_of(dialect: Dialect) -> DatabaseDialect:
    """Return the database dialect for a SQLAlchemy dialect.

    :raises ConfigurationError: the database is not supported.
    """
    return database_dialect_named(dialect.name)


def database_dialect_named(name: str) -> DatabaseDialect:
    """Return the database dialect for the name of a SQLAlchemy dialect or of a URL's backend.

    :raises ConfigurationError: the database is not supported.
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        raise ConfigurationError(
            f"{name} is not supported; the supported databases are: {', '.join(_BY_NAME)}"
        ) from None
