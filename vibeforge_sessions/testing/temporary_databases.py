"""Temporary databases for a test run, migrated once; each test gets an empty one. No other database is changed."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from typing import Final

from sqlalchemy import URL, Engine, make_url

from vibeforge_sessions.errors import ConfigurationError, StorageError
from vibeforge_sessions.sql import migrate
from vibeforge_sessions.sql.dialects import database_dialect_named
from vibeforge_sessions.sql.dialects.base import DatabaseDialect
from vibeforge_sessions.sql.engine import engine_on, parse_url
from vibeforge_sessions.sql.tables import sessions
from vibeforge_sessions.sql.transactions.error_translation import connected

NAME: Final = "vibeforge_sessions_test_"
"""Prefix of the names of databases on a server; the rest is random."""

EmptyDatabase = Callable[[], AbstractContextManager[str]]
"""Function that returns a context manager, which yields the URL of a migrated, empty database, one at a time."""


class HiddenURL(str):
    """Database URL whose ``repr`` hides the password, because test reports contain the ``repr`` of arguments."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(make_url(self).render_as_string(hide_password=True))


@contextmanager
def temporary_databases(url: str | URL, folder: Path) -> Iterator[EmptyDatabase]:
    """Yield a factory of test databases, which are dropped at the end of the block.

    :param url: ``sqlite://`` for SQLite files, each a copy of a migrated file, or the URL of a server. On a server, a
        database with a random name is created, emptied for each test, and dropped at the end. The database that the URL
        names is used only to connect to the server.
    :param folder: the folder of the SQLite files.
    :raises ConfigurationError: the URL names a SQLite file or an unsupported database.
    :raises StorageError: the URL's user lacks the privilege to create databases.
    """
    parsed = parse_url(url)
    database = database_dialect_named(parsed.get_backend_name())
    if database.create_database_statement is not None:
        with _on_server(parsed, database) as empty_database:
            yield empty_database
    elif parsed.database in {None, "", ":memory:"}:
        yield _in_files(folder)
    else:
        raise ConfigurationError(
            "on SQLite each test has its own file: use sqlite:// without a file name, or omit the URL"
        )


def _in_files(folder: Path) -> EmptyDatabase:
    template = folder / "template.db"
    with engine_on(f"sqlite:///{template}") as engine:
        migrate.upgrade(engine)
    numbers = count(1)

    @contextmanager
    def empty_database() -> Iterator[str]:
        file = folder / f"sessions_{next(numbers)}.db"
        shutil.copyfile(template, file)
        try:
            yield f"sqlite:///{file}"
        finally:
            for rest in folder.glob(f"{file.name}*"):  # also the -wal, -shm and -journal files
                rest.unlink(missing_ok=True)

    return empty_database


@contextmanager
def _on_server(server: URL, database: DatabaseDialect) -> Iterator[EmptyDatabase]:
    name = f"{NAME}{secrets.token_hex(8)}"
    with engine_on(server) as outside:
        try:
            _execute(outside, str(database.create_database_statement).format(name=name))
        except StorageError as error:
            raise StorageError(
                "no test database could be created on the server: give its user the privilege to create databases "
                f"({error})"
            ) from error
        try:
            with engine_on(server.set(database=name)) as inside:
                migrate.upgrade(inside)
                yield lambda: _emptied(inside, database)
        finally:
            _execute(
                outside, *database.short_lock_timeout_statements, database.drop_database_statement.format(name=name)
            )


@contextmanager
def _emptied(engine: Engine, database: DatabaseDialect) -> Iterator[str]:
    with connected(engine) as connection:
        for statement in database.short_lock_timeout_statements:
            connection.exec_driver_sql(statement)
        connection.execute(sessions.delete())  # ON DELETE CASCADE deletes their histories
        connection.commit()
    yield HiddenURL(engine.url.render_as_string(hide_password=False))


def _execute(engine: Engine, *statements: str) -> None:
    with connected(engine.execution_options(isolation_level="AUTOCOMMIT")) as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()  # leave no connection to the database that the URL names
