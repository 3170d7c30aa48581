"""Databases that live as long as a run of tests: migrated once, empty for each test. Nobody else's are touched."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from typing import Final

from sqlalchemy import URL, Engine, make_url

from vibeforge_sessions.errors import StorageError
from vibeforge_sessions.sql import migrate
from vibeforge_sessions.sql.dialects import Database, database_named
from vibeforge_sessions.sql.engine import engine_on, parse_url
from vibeforge_sessions.sql.tables import sessions
from vibeforge_sessions.sql.transactions.error_translation import connected

NAME: Final = "vibeforge_sessions_test_"
"""What the names of databases on a server begin with; the rest is random."""

EmptyDatabase = Callable[[], AbstractContextManager[str]]
"""Gives the URL of a migrated and empty database for as long as a block runs; one block at a time."""


class HiddenURL(str):
    """A database's URL, whose ``repr`` shows no password: test reports show the ``repr`` of arguments."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(make_url(self).render_as_string(hide_password=True))


@contextmanager
def temporary_databases(url: str | URL, folder: Path) -> Iterator[EmptyDatabase]:
    """Give what makes databases for tests, for as long as the block runs.

    :param url: ``sqlite://`` for files, each a copy of one that was migrated; or a server's, on which a database with a
        random name is made, emptied for each test, and dropped at the end. The one that the URL names is only
        connected to.
    :param folder: where the files lie.
    :raises StorageError: the URL is of a SQLite file, is not supported, or the server does not let its user make
        databases.
    """
    parsed = parse_url(url)
    database = database_named(parsed.get_backend_name())
    if database.create_database is not None:
        with _on_server(parsed, database) as made:
            yield made
    elif parsed.database in {None, "", ":memory:"}:
        yield _in_files(folder)
    else:
        raise StorageError("on SQLite each test gets a file of its own: give sqlite:// and no file, or nothing")


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
            for rest in folder.glob(f"{file.name}*"):  # SQLite's own files lie beside it
                rest.unlink(missing_ok=True)

    return empty_database


@contextmanager
def _on_server(server: URL, database: Database) -> Iterator[EmptyDatabase]:
    name = f"{NAME}{secrets.token_hex(8)}"
    with engine_on(server) as outside:
        try:
            _execute(outside, str(database.create_database).format(name=name))
        except StorageError as error:
            raise StorageError(
                f"no database for tests could be made on the server; its user needs the right to: {error}"
            ) from error
        try:
            with engine_on(server.set(database=name)) as inside:
                migrate.upgrade(inside)
                yield lambda: _emptied(inside, database)
        finally:
            _execute(outside, *database.wait_briefly, database.drop_database.format(name=name))


@contextmanager
def _emptied(engine: Engine, database: Database) -> Iterator[str]:
    with connected(engine) as connection:
        for statement in database.wait_briefly:
            connection.exec_driver_sql(statement)
        connection.execute(sessions.delete())  # their histories go with them
        connection.commit()
    yield HiddenURL(engine.url.render_as_string(hide_password=False))


def _execute(engine: Engine, *statements: str) -> None:
    with connected(engine.execution_options(isolation_level="AUTOCOMMIT")) as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()  # nobody stays connected to a database of others
