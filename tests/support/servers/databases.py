"""Databases for tests: one is prepared (migrated), and the others are copies of it."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, ClassVar, Self, cast

import sqlalchemy as sa

from .process import connected

Prepare = Callable[[sa.URL], None]


class DatabaseFactory(ABC):
    """A factory that creates and drops databases on one server, through an administrator's URL.

    ``prepare`` receives the URL of an empty database once, before the first copy is created. Each ``create()`` returns
    a copy of the prepared database. ``prepare`` must close its connections before it returns. ``options`` are appended
    to the CREATE DATABASE statement of the template, as for `create`.

    The factory keeps no connection between two calls, so that tests may fork and crash servers.
    """

    drivername: ClassVar[str]

    def __init__(self, admin_url: sa.URL, prepare: Prepare | None = None, *, options: str = "") -> None:
        self.admin_url = admin_url.set(drivername=self.drivername)
        self._prepare = prepare
        self._options = options
        self._prefix = f"vfs_{secrets.token_hex(4)}_"
        self._numbers = count(1)
        self._template: str | None = None
        self._created: list[str] = []
        self._derived: list[DatabaseFactory] = []

    def prepared_by(self, prepare: Prepare, *, options: str = "") -> Self:
        """Return a factory of copies of the database that ``prepare`` prepares.

        Call this once, not once per test. The new factory is closed together with this one.
        """
        factory = type(self)(self.admin_url, prepare, options=options)
        self._derived.append(factory)
        return factory

    def create(self, *, migrated: bool = True, options: str = "") -> sa.URL:
        """Create a copy of the prepared database, or an empty database with ``migrated=False``.

        ``options`` are SQL for an empty database: ``LOCALE_PROVIDER icu ICU_LOCALE 'en-US'`` on PostgreSQL, ``CHARACTER
        SET latin1`` on MariaDB.
        """
        if not migrated:
            return self._create_empty(f"{self._prefix}{next(self._numbers)}", options)
        assert not options, "a copy has the options of its template: pass options to prepared_by()"
        if self._template is None:
            self._template = self._create_template()
        name = f"{self._prefix}{next(self._numbers)}"
        self._created.append(name)
        self._copy(self._template, name)
        return self._url(name)

    def drop(self, url: sa.URL) -> None:
        """Drop a database of this factory, in spite of open connections."""
        name = url.database
        # On a shared server a mistake must not delete other data.
        assert name in self._created, f"{name} was not created by this factory"
        self._drop(name)
        self._created.remove(name)

    @contextmanager
    def database(self, *, migrated: bool = True, options: str = "") -> Iterator[sa.URL]:
        """Provide a new database during the block."""
        url = self.create(migrated=migrated, options=options)
        try:
            yield url
        finally:
            self.drop(url)

    def close(self) -> None:
        """Drop all remaining databases of this factory, including the template."""
        for factory in self._derived:
            factory.close()
        for name in self._created:
            self._drop(name)
        self._created.clear()
        self._template = None

    # -- differences between servers

    @abstractmethod
    def _create_statement(self, name: str, options: str) -> str:
        """Return the CREATE DATABASE statement of an empty database."""

    @abstractmethod
    def _freeze(self, template: str) -> None:
        """Prepare the template for copying."""

    @abstractmethod
    def _copy(self, template: str, name: str) -> None:
        """Create the database ``name`` as a copy of the template."""

    @abstractmethod
    def _drop(self, name: str) -> None:
        """Drop a database with force."""

    # -- helpers

    def _create_template(self) -> str:
        assert self._prepare is not None, "the factory has no prepare function: use create(migrated=False)"
        url = self._create_empty(f"{self._prefix}template", self._options)
        name = cast(str, url.database)
        try:
            self._prepare(url)
            self._freeze(name)
        except BaseException:
            self.drop(url)
            raise
        return name

    def _create_empty(self, name: str, options: str) -> sa.URL:
        with self._admin() as connection:
            _execute(connection, self._create_statement(name, options))
        self._created.append(name)
        return self._url(name)

    def _url(self, name: str) -> sa.URL:
        return self.admin_url.set(database=name)

    @contextmanager
    def _admin(self) -> Iterator[sa.Connection]:
        with connected(self.admin_url, isolation_level="AUTOCOMMIT") as connection:
            yield connection


class PostgresDatabases(DatabaseFactory):
    """Copies by ``CREATE DATABASE … TEMPLATE``."""

    drivername: ClassVar[str] = "postgresql+psycopg"
    _strategy = ""

    def _create_statement(self, name: str, options: str) -> str:
        return f"CREATE DATABASE {name} TEMPLATE template0 {options}"

    def _freeze(self, template: str) -> None:
        with self._admin() as connection:
            # A database with a connection to it cannot be copied.
            _execute(connection, f"ALTER DATABASE {template} ALLOW_CONNECTIONS false")
            _execute(connection, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{template}'")
            # Copying files needs checkpoints, which are cheap without fsync (5 ms per copy, 8 ms through the log).
            waits = connection.scalar(sa.text("SHOW fsync")) == "on"
            self._strategy = "wal_log" if waits else "file_copy"

    def _copy(self, template: str, name: str) -> None:
        with self._admin() as connection:
            _execute(connection, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY {self._strategy}")

    def _drop(self, name: str) -> None:
        with self._admin() as connection:
            _execute(connection, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


class MariaDBDatabases(DatabaseFactory):
    """Copies table by table, because MariaDB has no templates."""

    drivername: ClassVar[str] = "mysql+pymysql"
    _like_template = ""
    _statements: tuple[str, ...] = ()

    def _create_statement(self, name: str, options: str) -> str:
        return f"CREATE DATABASE {name} {options}"

    def _freeze(self, template: str) -> None:
        """Collect the statements that create a copy."""
        with self._admin() as connection:
            self._reject_uncopied_objects(connection, template)
            charset, collation = connection.execute(
                sa.text(
                    "SELECT default_character_set_name, default_collation_name"
                    " FROM information_schema.schemata WHERE schema_name = :name"
                ),
                {"name": template},
            ).one()
            _prepare_session(connection)
            _execute(connection, f"USE {template}")
            tables = connection.scalars(sa.text("SHOW TABLES")).all()
            shown = [_execute(connection, f"SHOW CREATE TABLE {_quoted(table)}").one()[1] for table in tables]
            rows = [self._copy_rows(connection, template, table) for table in tables]
        self._like_template = f"CHARACTER SET {charset} COLLATE {collation}"
        self._statements = (*shown, *filter(None, rows))

    def _copy_rows(self, connection: sa.Connection, template: str, table: str) -> str | None:
        if _execute(connection, f"SELECT 1 FROM {_quoted(table)} LIMIT 1").first() is None:
            return None
        columns = connection.scalars(
            sa.text(
                "SELECT column_name FROM information_schema.columns"
                " WHERE table_schema = :schema AND table_name = :table AND is_generated = 'NEVER'"
                " ORDER BY ordinal_position"
            ),
            {"schema": template, "table": table},
        ).all()
        listed = ", ".join(map(_quoted, columns))
        return f"INSERT INTO {_quoted(table)} ({listed}) SELECT {listed} FROM {template}.{_quoted(table)}"

    def _reject_uncopied_objects(self, connection: sa.Connection, template: str) -> None:
        found = connection.scalars(
            sa.text(
                "SELECT table_name FROM information_schema.tables"
                " WHERE table_schema = :name AND table_type <> 'BASE TABLE'"
                " UNION ALL SELECT trigger_name FROM information_schema.triggers WHERE trigger_schema = :name"
                " UNION ALL SELECT routine_name FROM information_schema.routines WHERE routine_schema = :name"
                " UNION ALL SELECT event_name FROM information_schema.events WHERE event_schema = :name"
            ),
            {"name": template},
        ).all()
        if found:
            raise NotImplementedError(f"only tables can be copied, not views, triggers or routines: {', '.join(found)}")

    def _copy(self, template: str, name: str) -> None:
        with self._admin() as connection:
            _prepare_session(connection)
            _execute(connection, self._create_statement(name, self._like_template))
            _execute(connection, f"USE {name}")
            for statement in self._statements:
                _execute(connection, statement)

    def _drop(self, name: str) -> None:
        with self._admin() as connection:
            # A transaction left open on one of its tables would make DROP wait.
            left = connection.scalars(
                sa.text("SELECT id FROM information_schema.processlist WHERE db = :name"), {"name": name}
            ).all()
            for connection_id in left:
                try:
                    _execute(connection, f"KILL {connection_id}")
                except sa.exc.DBAPIError as error:
                    if "Unknown thread id" not in str(error):  # the connection has just ended by itself
                        raise
            _execute(connection, "SET SESSION lock_wait_timeout = 20")
            _execute(connection, f"DROP DATABASE IF EXISTS {name}")


def _prepare_session(connection: sa.Connection) -> None:
    # As mysqldump does: tables in any order, unchanged rows, names quoted with backticks.
    _execute(connection, "SET SESSION foreign_key_checks = 0, unique_checks = 0, sql_mode = 'NO_AUTO_VALUE_ON_ZERO'")


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _execute(connection: sa.Connection, statement: str) -> sa.CursorResult[*tuple[Any, ...]]:
    # No parameter syntax: a default value or a comment may contain a percent sign or a colon.
    options = {"no_parameters": True}
    return connection.exec_driver_sql(statement, execution_options=options)
