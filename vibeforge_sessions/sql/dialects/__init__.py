"""What differs between databases, one room for each; the rest of the package asks `database_of`."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Dialect

from vibeforge_sessions.errors import StorageError
from vibeforge_sessions.sql.dialects.base import Database, Settings, Timeouts, failure_code
from vibeforge_sessions.sql.dialects.mariadb import MariaDB
from vibeforge_sessions.sql.dialects.postgresql import PostgreSQL
from vibeforge_sessions.sql.dialects.sqlite import SQLite

__all__ = ["DATABASES", "Database", "Settings", "Timeouts", "database_named", "database_of", "failure_code"]

DATABASES: Final[tuple[Database, ...]] = (SQLite(), PostgreSQL(), MariaDB())
_BY_NAME: Final = {name: database for database in DATABASES for name in database.names}


def database_of(dialect: Dialect) -> Database:
    """Return what knows about a dialect's database.

    :raises StorageError: it is not supported.
    """
    return database_named(dialect.name)


def database_named(name: str) -> Database:
    """Return what knows about a database, by the name of a dialect or of a URL's backend.

    :raises StorageError: it is not supported.
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        raise StorageError(f"{name} is not supported; these are: {', '.join(_BY_NAME)}") from None
