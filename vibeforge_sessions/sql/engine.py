"""Creation of engines with the settings that this package needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy
from sqlalchemy import URL, Engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from vibeforge_sessions.errors import ConfigurationError
from vibeforge_sessions.model.builtin_types import exact
from vibeforge_sessions.sql import fork_safety
from vibeforge_sessions.sql.dialects import DATABASE_DIALECTS, database_dialect_named
from vibeforge_sessions.sql.dialects.base import PREPARED, DatabaseDialect, EngineSettings
from vibeforge_sessions.sql.transactions.time_limits import watch_new

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


def create_engine(
    url: str | URL,
    *,
    synchronous: Literal["FULL", "NORMAL"] = "FULL",
    busy_timeout: float = 30.0,
    pgbouncer: bool = False,
    schema: str | None = None,
    **options: Any,
) -> Engine:
    """Return an engine with the settings that sessions need. The function does not connect.

    SQLite gets WAL, foreign keys, explicit transactions (Python's driver begins none for reads and DDL), and BEGIN
    IMMEDIATE for the writes of this package. Without BEGIN IMMEDIATE, half of the transactions of four processes that
    first read and then wrote failed with "database is locked". All threads share one connection to a database in
    memory. PostgreSQL gets READ COMMITTED. MariaDB gets REPEATABLE READ, strict SQL mode and utf8mb4. Both get UTC and
    time limits: 5 s for connecting, 10 s for a row lock, and 60 s for an idle transaction. The docstrings of the
    classes in ``vibeforge_sessions/sql/dialects`` give the reasons.

    :param url: ``sqlite:///file.db``, ``sqlite://`` for memory, ``postgresql+psycopg://…``, ``mariadb+pymysql://…``
        or ``mysql+pymysql://…``. For several servers, write ``…://user@/database?host=a:3306&host=b:3306``. The
        engine connects to the first server that is ready, and to another one after that server is lost. On PostgreSQL,
        add ``&target_session_attrs=read-write``.
    :param synchronous: SQLite only. FULL: acknowledged writes survive a power loss. NORMAL: they survive only a
        crash of the process, but an append takes 37 µs instead of 209 µs.
    :param busy_timeout: SQLite only. Seconds to wait for another writer.
    :param pgbouncer: PostgreSQL only. For PgBouncer in transaction mode: the engine neither prepares statements nor
        changes settings when it connects. Each append then runs in a transaction, with BEGIN and COMMIT.
    :param schema: PostgreSQL only. The schema of the tables. Its name is written into each statement. It is not set as
        ``search_path``, because PgBouncer would pass this setting on to other clients. For an engine of your own, use
        ``engine.execution_options(schema_translate_map={None: schema})``.
    :param options: further arguments of `sqlalchemy.create_engine`.
    :raises ConfigurationError: the URL is unsupported, its driver is not installed (the error names the extra), or an
        option has an invalid value.
    """
    settings = EngineSettings(exact(synchronous), exact(busy_timeout), pgbouncer)
    engine: Engine = _create(url, settings, schema, options, is_async=False)
    return engine


def create_async_engine(
    url: str | URL, *, pgbouncer: bool = False, schema: str | None = None, **options: Any
) -> AsyncEngine:
    """Return an asynchronous engine with the settings of `create_engine`.

    :param url: ``postgresql+psycopg://…``, ``postgresql+asyncpg://…``, ``mariadb+asyncmy://…``, ``mysql+asyncmy://…``
        or ``sqlite+aiosqlite://…``, which is slower than pysqlite: see `AsyncSQLAlchemySessionRepository`.
    :raises ConfigurationError: the URL is unsupported, its driver or greenlet is not installed, or an option has an
        invalid value.
    """
    engine: AsyncEngine = _create(url, EngineSettings(pgbouncer=pgbouncer), schema, options, is_async=True)
    return engine


def is_asynchronous(url: str | URL) -> bool:
    """Return whether the driver of the URL supports asyncio.

    :raises ConfigurationError: as `create_engine` does.
    """
    parsed = parse_url(url)
    return parsed.drivername in database_dialect_named(parsed.get_backend_name()).async_drivers


@contextmanager
def engine_on(url: str | URL, *, schema: str | None = None) -> Iterator[Engine]:
    """Provide an engine from `create_engine`, and dispose of it at the end of the block."""
    engine = create_engine(url, schema=schema)
    try:
        yield engine
    finally:
        engine.dispose()


def parse_url(url: str | URL) -> URL:
    """Return the URL, with the default driver if it names none.

    :raises ConfigurationError: the URL is malformed, or its database is not supported. The error does not show the
        password.
    """
    try:
        given = url if issubclass(type(url), URL) else exact(url)
        if type(given) is not str and not issubclass(type(given), URL):
            raise TypeError  # SQLAlchemy's error message would contain the repr of the value
        parsed = make_url(given)
    except (ArgumentError, ValueError, TypeError):
        raise ConfigurationError("the database URL is malformed: write it like sqlite:///sessions.db") from None
    default = next((name for name in _EXTRAS if name.startswith(f"{parsed.drivername}+")), None)
    if default is not None:
        parsed = parsed.set(drivername=default)
    if parsed.drivername == "memory":
        raise ConfigurationError(
            "memory:// stores sessions in this process, without tables: give a database's URL, such as sqlite:///sessions.db"
        )
    for name in {"password", "passwd"} & parsed.query.keys():  # SQLAlchemy does not hide passwords in the query
        password = parsed.query[name]
        parsed = parsed.difference_update_query([name])
        parsed = parsed.set(password=password if isinstance(password, str) else password[-1])
    if parsed.drivername not in _EXTRAS:
        raise ConfigurationError(
            f"a database URL that begins with {parsed.drivername}:// is not supported; supported URLs begin with: "
            + ", ".join(
                f"{name}://" + (f" (vibeforge-sessions[{extra}])" if extra else "") for name, extra in _EXTRAS.items()
            )
        )
    return parsed


_EXTRAS = {
    name: extra
    for database_dialect in DATABASE_DIALECTS
    for name, extra in {**database_dialect.drivers, **database_dialect.async_drivers}.items()
}
"""Supported drivers, each with the extra that installs it. The default driver of a backend precedes its others."""
_LONGEST_WAIT = 1_000_000
"""Maximum of `busy_timeout` in seconds. SQLite takes the timeout in milliseconds, as a 32-bit integer."""


def _create(
    url: str | URL, settings: EngineSettings, schema: str | None, options: dict[str, Any], *, is_async: bool
) -> Any:
    parsed = parse_url(url)
    database_dialect = database_dialect_named(parsed.get_backend_name())
    _check(settings, database_dialect)
    if parsed.drivername not in (database_dialect.async_drivers if is_async else database_dialect.drivers):
        kind, function = ("not an", "create_engine") if is_async else ("an", "create_async_engine")
        raise ConfigurationError(f"{parsed.drivername}:// is {kind} asynchronous driver: pass the URL to {function}")
    prepared = database_dialect.engine_options(parsed, settings)
    if schema is not None:
        if not database_dialect.has_schemas:
            raise ConfigurationError(
                f"{database_dialect.names[0]} has no schemas within a database: name another database in its URL"
            )
        prepared.setdefault("execution_options", {})["schema_translate_map"] = {None: schema}
    create: Any = sqlalchemy.create_engine
    if is_async:
        try:
            import greenlet  # noqa: F401, PLC0415 (SQLAlchemy reports that it is missing only at the first use)
            from sqlalchemy.ext.asyncio import create_async_engine as create  # noqa: PLC0415
        except ImportError:
            raise ConfigurationError(
                "asynchronous engines need greenlet: pip install 'vibeforge-sessions[async]'"
            ) from None
    try:
        created = create(parsed, **_merge(prepared, options))
    except (ImportError, NoSuchModuleError):
        raise ConfigurationError(
            f"the driver for {parsed.drivername}:// is not installed: pip install "
            f"'vibeforge-sessions[{_EXTRAS[parsed.drivername]}]'"
        ) from None
    except (ValueError, ArgumentError):  # raised by the dialect for an option in the URL
        raise ConfigurationError(
            "an option in the database URL has an invalid value: correct it or leave it out"
        ) from None
    engine = created.sync_engine if is_async else created
    database_dialect.add_event_listeners(engine, parsed, settings)
    fork_safety.track(engine)
    if database_dialect.is_server:
        event.listen(engine, "connect", watch_new, insert=True)  # before SQLAlchemy's listeners, which send queries
    return created


def _check(settings: EngineSettings, database_dialect: DatabaseDialect) -> None:
    """Check the options that only some databases support."""
    if settings.synchronous not in ("FULL", "NORMAL"):
        raise ConfigurationError("must be FULL or NORMAL", "synchronous")
    if type(settings.busy_timeout) not in {int, float} or not 0 <= settings.busy_timeout <= _LONGEST_WAIT:
        raise ConfigurationError(f"must be a number of seconds from 0 to {_LONGEST_WAIT:,}", "busy_timeout")
    if type(settings.pgbouncer) is not bool:
        raise ConfigurationError("must be True or False", "pgbouncer")
    if settings.pgbouncer and "postgresql" not in database_dialect.names:
        raise ConfigurationError(f"is for PostgreSQL only: leave it out for {database_dialect.names[0]}", "pgbouncer")


def _merge(prepared: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Merge the prepared options with the caller's, which take precedence."""
    merged: dict[str, Any] = {"hide_parameters": True, **prepared, **given}  # no user data in messages or logs
    for name in ("connect_args", "execution_options"):
        merged[name] = {**prepared.get(name, {}), **given.get(name, {})}
    merged["execution_options"][PREPARED] = "isolation_level" not in given
    if "options" in given.get("connect_args", {}):  # PostgreSQL's: if both set a parameter, the later one wins
        merged["connect_args"]["options"] = (
            f"{prepared['connect_args'].get('options', '')} {given['connect_args']['options']}"
        )
    if "poolclass" in given:  # the sizes belong to the prepared pool class
        for name in ("pool_size", "max_overflow", "pool_timeout"):
            if name in prepared and name not in given:
                del merged[name]
    return merged
