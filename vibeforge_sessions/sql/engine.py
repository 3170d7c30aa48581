"""From a URL to an `Engine` that is prepared for sessions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy
from sqlalchemy import URL, Engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from vibeforge_sessions.errors import StorageError
from vibeforge_sessions.model.builtin_types import exact_str
from vibeforge_sessions.sql import fork_safety
from vibeforge_sessions.sql.dialects import DATABASES, Database, Settings, database_named
from vibeforge_sessions.sql.dialects.base import OURS
from vibeforge_sessions.sql.transactions.time_limits import watch_new

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["create_async_engine", "create_engine", "engine_on", "parse_url"]


def create_engine(
    url: str | URL,
    *,
    synchronous: Literal["FULL", "NORMAL"] = "FULL",
    busy_timeout: float = 30.0,
    pgbouncer: bool = False,
    schema: str | None = None,
    **options: Any,
) -> Engine:
    """Return an engine that is prepared for sessions; it does not connect yet.

    SQLite gets WAL, foreign keys, real transactions (Python's driver does not begin any for reads or DDL), and
    BEGIN IMMEDIATE for this package's writes: a transaction that begins by reading and then writes is refused
    with "database is locked" in half of the attempts. A database in memory is shared by all threads.
    PostgreSQL gets READ COMMITTED, MariaDB REPEATABLE READ, strict SQL mode and utf8mb4, both UTC, at most 5 s for
    connecting, 10 s for a row's lock, and a minute for a transaction that does nothing: see the classes in
    `vibeforge_sessions.sql.dialects` for the reasons.

    :param url: ``sqlite:///file.db``, ``sqlite://`` for memory, ``postgresql+psycopg://…``, ``mariadb+pymysql://…``
        or ``mysql+pymysql://…``. With several servers ``…://user@/database?host=a:3306&host=b:3306``: the first that
        can be used is (on PostgreSQL add ``&target_session_attrs=read-write``), and others when it is lost.
    :param synchronous: SQLite only. FULL: what was acknowledged survives a power loss; NORMAL: it survives a
        crash of the process, and an append takes 37 µs instead of 209.
    :param busy_timeout: SQLite only; seconds to wait for another writer.
    :param pgbouncer: PostgreSQL only; for PgBouncer in transaction mode, where no statement may be prepared and
        nothing set at connect. An append is a transaction there, and takes BEGIN and COMMIT.
    :param schema: PostgreSQL only; the schema in which our tables stand. It is written into each statement, and not
        set as a path at connect: that would leak through PgBouncer. A host's own engine gets the same by
        ``engine.execution_options(schema_translate_map={None: schema})``.
    :param options: for `sqlalchemy.create_engine`.
    :raises StorageError: the URL is unsupported, or its driver is not installed (the error names the extra).
    """
    settings = Settings(synchronous=synchronous, busy_timeout=busy_timeout, pgbouncer=pgbouncer)
    parsed = parse_url(url)
    database = database_named(parsed.get_backend_name())
    if parsed.drivername not in database.drivers:
        raise StorageError(f"{parsed.drivername}:// is an asynchronous driver: use create_async_engine")
    with _driver_explained(parsed):
        engine = sqlalchemy.create_engine(
            database.engine_url(parsed),
            **_merge({**database.engine_options(parsed, settings), **_in_schema(schema, database)}, options),
        )
    database.prepare(engine, parsed, settings)
    fork_safety.track(engine)
    if database.is_server:
        event.listen(engine, "connect", watch_new, insert=True)  # before SQLAlchemy asks the server this and that
    return engine


def create_async_engine(
    url: str | URL, *, pgbouncer: bool = False, schema: str | None = None, **options: Any
) -> AsyncEngine:
    """Return an asynchronous engine that is prepared like `create_engine`'s.

    :param url: ``postgresql+psycopg://…``, ``postgresql+asyncpg://…``, ``mariadb+asyncmy://…``, ``mysql+asyncmy://…``
        or ``sqlite+aiosqlite://…``, which is the slow way to SQLite: see `AsyncSQLAlchemySessionRepository`.
    :raises StorageError: the URL is unsupported, or its driver or greenlet is not installed.
    """
    settings = Settings(synchronous="FULL", busy_timeout=30.0, pgbouncer=pgbouncer)
    parsed = parse_url(url)
    database = database_named(parsed.get_backend_name())
    if parsed.drivername not in database.async_drivers:
        raise StorageError(f"{parsed.drivername}:// is no asynchronous driver: use create_engine")
    try:
        import greenlet  # noqa: F401, PLC0415 (an extra, and SQLAlchemy says so at the first import only)
        from sqlalchemy.ext.asyncio import create_async_engine as create  # noqa: PLC0415
    except ImportError:
        raise StorageError("asynchronous engines need greenlet: pip install 'vibeforge-sessions[async]'") from None
    with _driver_explained(parsed):
        engine = create(
            database.engine_url(parsed),
            **_merge({**database.engine_options(parsed, settings), **_in_schema(schema, database)}, options),
        )
    database.prepare(engine.sync_engine, parsed, settings)
    fork_safety.track(engine.sync_engine)
    return engine


def is_asynchronous(url: str | URL) -> bool:
    """Tell whether the URL's driver has an asynchronous side.

    :raises StorageError: as `create_engine` does.
    """
    parsed = parse_url(url)
    return parsed.drivername in database_named(parsed.get_backend_name()).async_drivers


@contextmanager
def engine_on(url: str | URL, *, schema: str | None = None) -> Iterator[Engine]:
    """Give an engine like `create_engine`'s for as long as a block runs."""
    engine = create_engine(url, schema=schema)
    try:
        yield engine
    finally:
        engine.dispose()


def parse_url(url: str | URL) -> URL:
    """Return the URL with its driver named.

    :raises StorageError: it is no URL, or of a database that is not supported; its password is not shown.
    """
    try:
        given = url if issubclass(type(url), URL) else exact_str(url)
        if given is None:  # SQLAlchemy would ask it for its repr
            raise TypeError
        parsed = make_url(given)
    except (ArgumentError, ValueError, TypeError):
        raise StorageError("the database URL cannot be understood: it looks like sqlite:///sessions.db") from None
    if parsed.drivername in _DEFAULT_DRIVERS:
        parsed = parsed.set(drivername=_DEFAULT_DRIVERS[parsed.drivername])
    if parsed.drivername == "memory":
        raise StorageError(
            "memory:// is a process's own memory, without tables: a database's URL looks like sqlite:///sessions.db"
        )
    for name in {"password", "passwd"} & parsed.query.keys():  # drivers take it; SQLAlchemy shows it there
        password = parsed.query[name]
        parsed = parsed.difference_update_query([name])
        parsed = parsed.set(password=password if isinstance(password, str) else password[-1])
    if parsed.drivername not in _EXTRAS:
        raise StorageError(
            f"a database URL that begins with {parsed.drivername}:// is not supported; these are: "
            + ", ".join(
                f"{name}://" + (f" (vibeforge-sessions[{extra}])" if extra else "") for name, extra in _EXTRAS.items()
            )
        )
    return parsed


_EXTRAS = {
    name: extra for database in DATABASES for name, extra in {**database.drivers, **database.async_drivers}.items()
}
_DEFAULT_DRIVERS = {
    backend: next(name for name in database.drivers if name.startswith(f"{backend}+"))
    for database in DATABASES
    for backend in database.names
}


def _in_schema(schema: str | None, database: Database) -> dict[str, Any]:
    if schema is None:
        return {}
    if not database.has_schemas:
        raise StorageError(f"{database.names[0]} has no schemas within a database: name another database in its URL")
    return {"execution_options": {"schema_translate_map": {None: schema}}}


def _merge(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Return both options; the caller's win."""
    merged: dict[str, Any] = {"hide_parameters": True, **ours, **theirs}  # no user data in messages or logs
    merged["connect_args"] = {**ours.get("connect_args", {}), **theirs.get("connect_args", {})}
    merged["execution_options"] = {
        **ours.get("execution_options", {}),
        **theirs.get("execution_options", {}),
        OURS: "isolation_level" not in theirs,
    }
    if "options" in theirs.get("connect_args", {}):  # PostgreSQL's: later ones win
        merged["connect_args"]["options"] = (
            f"{ours['connect_args'].get('options', '')} {theirs['connect_args']['options']}"
        )
    if "poolclass" in theirs:  # the sizes are those of our pool
        for name in ("pool_size", "max_overflow", "pool_timeout"):
            if name in ours and name not in theirs:
                del merged[name]
    return merged


@contextmanager
def _driver_explained(url: URL) -> Iterator[None]:
    try:
        yield
    except (ImportError, NoSuchModuleError):
        raise StorageError(
            f"the driver for {url.drivername}:// is not installed: pip install "
            f"'vibeforge-sessions[{_EXTRAS[url.drivername]}]'"
        ) from None
    except (ValueError, ArgumentError):  # the dialect's own, of an option in the URL
        raise StorageError("the database URL has an option whose value cannot be understood") from None
