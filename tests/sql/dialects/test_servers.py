"""Engines on PostgreSQL and MariaDB: connection settings, supported application engines, and size limits."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import URL, Engine, event, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine as create_plain_async_engine

from tests.support.databases import Storage, reject_inserts
from tests.support.repositories import upgrade
from tests.support.servers import AvailableServer, MariaDBDatabases, MariaDBServer
from tests.support.servers.fixtures import skipping
from vibeforge_sessions import (
    AsyncSQLAlchemySessionRepository,
    ConfigurationError,
    CorruptSessionError,
    InvalidSessionError,
    OutcomeUnknownError,
    RetryPolicy,
    SchemaError,
    Session,
    SessionExistsError,
    SessionPhase,
    SQLAlchemySessionRepository,
    StorageError,
)
from vibeforge_sessions.sql import create_async_engine, create_engine, migrate
from vibeforge_sessions.testing.base import SESSION_ID, assert_same, full_session, stored

SECRET = "s3cret"
STRICT = {"STRICT_ALL_TABLES", "NO_ENGINE_SUBSTITUTION"}


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql"])
def test_postgresql_engine_sets_utc_and_read_committed(postgresql: Storage, driver: str) -> None:
    engine = create_engine(postgresql.url_with(driver))
    with engine.connect() as connection:
        assert connection.execute(text("SHOW TimeZone")).scalar() == "UTC"
        assert connection.get_isolation_level() == "READ COMMITTED"
        assert engine.dialect.driver == "psycopg"
    engine.dispose()


@pytest.mark.parametrize("driver", ["mysql+pymysql", "mariadb+pymysql", "mysql", "mariadb"])
def test_mariadb_engine_sets_utc_strict_mode_and_utf8mb4(mariadb: Storage, driver: str) -> None:
    engine = create_engine(mariadb.url_with(driver))
    with engine.connect() as connection:
        row = connection.execute(text("SELECT @@time_zone, @@sql_mode, @@character_set_client")).one()
        assert (row[0], set(row[1].split(",")) & STRICT, row[2]) == ("+00:00", STRICT, "utf8mb4")
        assert connection.get_isolation_level() == "REPEATABLE READ"
        assert engine.dialect.driver == "pymysql"
    repository = SQLAlchemySessionRepository(engine)
    given = full_session()
    repository.create_session(given)
    assert_same(stored(repository), given)
    engine.dispose()


@pytest.mark.parametrize("pgbouncer", [False, True], ids=["direct", "pgbouncer"])
def test_async_postgresql_engine_prepares_statements_unless_pgbouncer(postgresql: Storage, pgbouncer: bool) -> None:
    async def ask(url: str) -> tuple[object, object]:
        engine = create_async_engine(url, pgbouncer=pgbouncer)
        async with engine.connect() as connection:
            zone = (await connection.execute(text("SHOW TimeZone"))).scalar()
            level = (await connection.execute(text("SHOW transaction_isolation"))).scalar()
            for _ in range(8):  # drivers prepare a statement after several executions
                await connection.execute(text("SELECT count(*) FROM vibeforge_sessions"))
            prepared = (await connection.execute(text("SELECT count(*) FROM pg_prepared_statements"))).scalar_one()
        await engine.dispose()
        assert bool(prepared) is not pgbouncer
        return zone, level

    zone, level = asyncio.run(ask(postgresql.url_with("postgresql+asyncpg")))
    assert level == "read committed"
    assert pgbouncer or zone == "UTC"


def test_engine_for_pgbouncer_prepares_and_sets_nothing(postgresql: Storage) -> None:
    for pgbouncer in (False, True):
        engine = create_engine(postgresql.url_with("postgresql+psycopg"), pgbouncer=pgbouncer)
        repository = SQLAlchemySessionRepository(engine)
        repository.create_session(session_id=SESSION_ID)
        for _ in range(8):  # psycopg prepares a statement at its fifth execution
            repository.append_log(SESSION_ID, "m")
        with engine.connect() as connection:
            prepared = connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar_one()
            source = connection.execute(text("SELECT source FROM pg_settings WHERE name = 'TimeZone'")).scalar_one()
        assert bool(prepared) is not pgbouncer
        assert (source == "client") is not pgbouncer
        engine.dispose()


@pytest.mark.parametrize("driver", ["mysql+asyncmy", "mariadb+asyncmy"])
def test_async_mariadb_engine_sets_utc_strict_mode_and_utf8mb4(mariadb: Storage, driver: str) -> None:
    async def ask(url: str) -> tuple[object, ...]:
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            query = text("SELECT @@time_zone, @@sql_mode, @@character_set_client, @@tx_isolation")
            row = (await connection.execute(query)).one()
        await engine.dispose()
        return tuple(row)

    zone, mode, charset, level = asyncio.run(ask(mariadb.url_with(driver)))
    assert (zone, charset, level) == ("+00:00", "utf8mb4", "REPEATABLE-READ")
    assert set(str(mode).split(",")) >= STRICT


@pytest.mark.parametrize(
    ("url", "make", "hint"),
    [
        ("postgresql+asyncpg://u:s3cret@h/d", create_engine, "create_async_engine"),
        ("mysql+asyncmy://u:s3cret@h/d", create_engine, "create_async_engine"),
        ("mariadb+pymysql://u:s3cret@h/d", create_async_engine, "create_engine"),
        ("sqlite://", create_async_engine, "create_engine"),
    ],
)
def test_driver_of_other_kind_is_rejected_with_function_to_use(url: str, make: type, hint: str) -> None:
    with pytest.raises(ConfigurationError, match=f"pass the URL to {hint}") as caught:
        make(url)
    assert "s3cret" not in str(caught.value)


def test_latin1_connection_is_rejected(mariadb: Storage) -> None:
    engine = sqlalchemy.create_engine(mariadb.url_with("mysql+pymysql") + "?charset=latin1")
    repository = SQLAlchemySessionRepository(engine)
    for call in (repository.create_session, repository.list_sessions):
        with pytest.raises(ConfigurationError, match="charset=utf8mb4"):
            call()
    engine.dispose()


@pytest.fixture(scope="module", params=["skip-character-set-client-handshake", "init-connect=SET NAMES latin1"])
def latin1_server(request: pytest.FixtureRequest) -> Iterator[URL]:
    """Yield a URL of a MariaDB server that overrides the requested character set. The user has no SUPER privilege."""
    with skipping(), MariaDBServer(charset="latin1", args=[f"--{request.param}"]) as server:
        url = MariaDBDatabases(server.url, upgrade).create()
        engine = sqlalchemy.create_engine(server.url)
        with engine.connect() as connection:  # the server does not run init_connect for administrators
            connection.exec_driver_sql(f"CREATE USER app@127.0.0.1 IDENTIFIED BY '{SECRET}'")
            connection.exec_driver_sql(f"GRANT ALL ON {url.database}.* TO app@127.0.0.1")
        engine.dispose()
        yield url.set(username="app", password=SECRET)


CHARACTER_SETS = (
    "SELECT @@character_set_client, @@character_set_connection, @@character_set_results, "
    "substring_index(@@collation_connection, '_', 1)"
)
TEXT = "\u00e9\U0001f600"


@pytest.mark.parametrize("driver", ["mariadb+pymysql", "mariadb+asyncmy"])
def test_engine_sets_character_set_that_server_overrides(latin1_server: URL, driver: str) -> None:
    url = latin1_server.set(drivername=driver)
    if driver == "mariadb+pymysql":
        engine = create_engine(url)
        with engine.connect() as connection:
            assert set(connection.exec_driver_sql(CHARACTER_SETS).one()) == {"utf8mb4"}
        repository = SQLAlchemySessionRepository(engine)
        session_id = repository.create_session().session_id
        assert [repository.append_log(session_id, TEXT)] == repository.list_logs(session_id)
        engine.dispose()
        return

    async def work() -> None:
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            assert set((await connection.exec_driver_sql(CHARACTER_SETS)).one()) == {"utf8mb4"}
        repository = AsyncSQLAlchemySessionRepository(engine)
        session_id = (await repository.create_session()).session_id
        assert [await repository.append_log(session_id, TEXT)] == await repository.list_logs(session_id)
        await engine.dispose()

    asyncio.run(work())


def executing(statement: str) -> Callable[[Any, object], None]:
    """Return a listener for an engine's "connect" event that executes a statement."""

    def connect(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(statement)
        cursor.close()

    return connect


REJECTED = [
    ("SET character_set_client = latin1", "character_set_client is latin1"),
    ("SET character_set_connection = latin1", "character_set_connection is latin1"),
    ("SET collation_connection = latin1_swedish_ci", "character_set_connection is latin1"),
    ("SET collation_connection = utf8mb3_bin", "character_set_connection is utf8mb3"),
    ("SET character_set_results = latin1", "character_set_results is latin1"),
]


@pytest.mark.parametrize("joined", [False, True], ids=["engine", "joined connection"])
@pytest.mark.parametrize("driver", ["mariadb+pymysql", "mariadb+asyncmy"])
@pytest.mark.parametrize(("statement", "problem"), REJECTED)
def test_engine_with_lossy_character_set_is_rejected(
    mariadb: Storage, driver: str, statement: str, problem: str, joined: bool
) -> None:
    url = make_url(mariadb.url_with(driver)).update_query_dict({"charset": "utf8mb4"})
    fix = rf"{problem} .*add \?charset=utf8mb4"
    if driver == "mariadb+pymysql":
        engine = sqlalchemy.create_engine(url)
        event.listen(engine, "connect", executing(statement))
        with engine.connect() as connection, pytest.raises(ConfigurationError, match=fix):
            SQLAlchemySessionRepository(connection if joined else engine).create_session()
        engine.dispose()
    else:

        async def work() -> None:
            engine = create_plain_async_engine(url)
            event.listen(engine.sync_engine, "connect", executing(statement))
            async with engine.connect() as connection:
                with pytest.raises(ConfigurationError, match=fix):
                    await AsyncSQLAlchemySessionRepository(connection if joined else engine).create_session()
            await engine.dispose()

        asyncio.run(work())
    other = create_engine(url.set(drivername="mariadb+pymysql"))
    assert SQLAlchemySessionRepository(other).list_sessions() == []
    other.dispose()


@pytest.mark.parametrize("make", [create_engine, sqlalchemy.create_engine], ids=["package", "SQLAlchemy"])
def test_driver_whose_character_set_differs_from_connection_is_rejected(
    mariadb: Storage, make: Callable[..., Engine]
) -> None:
    engine = make(mariadb.url_with("mariadb+pymysql"), connect_args={"charset": "latin1"})
    event.listen(engine, "connect", executing("SET NAMES utf8mb4"))
    problem = "driver's character set is latin1.*charset=utf8mb4"
    for fast_path in (False, True):
        with pytest.raises(ConfigurationError, match=problem):
            SQLAlchemySessionRepository(engine, fast_path=fast_path).create_session()
    with engine.connect() as connection, pytest.raises(ConfigurationError, match=problem):
        SQLAlchemySessionRepository(connection).create_session()
    engine.dispose()


def test_async_driver_whose_character_set_differs_from_connection_is_rejected(mariadb: Storage) -> None:
    async def work() -> None:
        for make in (create_async_engine, create_plain_async_engine):
            engine = make(mariadb.url_with("mariadb+asyncmy"), connect_args={"charset": "latin1"})
            event.listen(engine.sync_engine, "connect", executing("SET NAMES utf8mb4"))
            with pytest.raises(ConfigurationError, match="driver's character set is latin1"):
                await AsyncSQLAlchemySessionRepository(engine).create_session()
            await engine.dispose()

    asyncio.run(work())


def test_results_without_conversion_are_accepted(mariadb: Storage) -> None:
    engine = sqlalchemy.create_engine(mariadb.url_with("mariadb+pymysql") + "?charset=utf8mb4")
    event.listen(engine, "connect", executing("SET character_set_results = NULL"))
    repository = SQLAlchemySessionRepository(engine)
    session_id = repository.create_session().session_id
    assert [repository.append_log(session_id, TEXT)] == repository.list_logs(session_id)
    engine.dispose()


def test_unreachable_server_raises_without_password(
    postgresql_server: AvailableServer, mariadb_server: AvailableServer
) -> None:
    for server in (postgresql_server, mariadb_server):
        engine = create_engine(server.url.set(port=1, password="s3cret"))
        with pytest.raises(StorageError, match="could not reach") as caught:
            SQLAlchemySessionRepository(engine, retry=RetryPolicy(attempts=3)).list_sessions()
        assert "s3cret" not in repr(caught.value) + str(caught.value.__cause__)


# --- size limits ---


@pytest.fixture(scope="module")
def small_packets() -> Iterator[URL]:
    """Yield the URL of a MariaDB server that accepts statements of up to one megabyte."""
    with skipping(), MariaDBServer(args=["--max-allowed-packet=1M"]) as server:
        yield MariaDBDatabases(server.url, upgrade).create()


def test_value_above_max_allowed_packet_is_rejected_with_sizes(small_packets: URL) -> None:
    engine = create_engine(small_packets)
    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(session_id=SESSION_ID)
    session = stored(repository)
    # plain, escaped by JSON and by the driver, and multibyte
    for text_ in ("x" * 1_100_000, '"' * 300_000, "☃" * 180_000):
        session.concept = {"c": text_}
        fresh = Session(concept={"c": text_})
        for call in (lambda: repository.update_session(session), lambda given=fresh: repository.create_session(given)):
            with pytest.raises(
                InvalidSessionError, match=r"need [\d,]+ bytes, .* at most 1,048,576 \(max_allowed_packet\)"
            ):
                call()
    for message in ("x" * 1_100_000, "'" * 600_000, "\n" * 600_000, "😀" * 300_000):
        with pytest.raises(InvalidSessionError, match="max_allowed_packet"):
            repository.append_error(SESSION_ID, "t", message)
        with pytest.raises(InvalidSessionError, match="max_allowed_packet"):
            repository.append_log(SESSION_ID, message)
    assert repository.list_sessions() == [SESSION_ID]
    assert (stored(repository).version, stored(repository).error_history, stored(repository).logs) == (1, [], [])
    engine.dispose()


def test_values_within_max_allowed_packet_are_stored(small_packets: URL) -> None:
    engine = create_engine(small_packets)
    repository = SQLAlchemySessionRepository(engine)
    given = Session(session_id="large", concept={"c": "x" * 1_000_000})
    repository.create_session(given)
    given.build_spec = {"b": "x" * 1_000_000}  # the row exceeds a packet, but can be read
    repository.update_session(given)
    for _ in range(3):
        given.add_error("t", "'" * 500_000)  # each entry fits into a statement of its own
    repository.update_session(given)
    assert_same(stored(repository, "large"), given)
    engine.dispose()


def test_value_above_sqlite_length_limit_is_rejected(sqlite: Storage) -> None:
    engine = sqlite.new_engine()

    @sqlalchemy.event.listens_for(engine, "connect")
    def connect(connection: object, _record: object) -> None:
        connection.setlimit(0, 100_000)  # type: ignore[attr-defined]

    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(session_id=SESSION_ID)
    for message in ("x" * 100_001, "☃" * 40_000):
        with pytest.raises(InvalidSessionError, match="SQLITE_LIMIT_LENGTH"):
            repository.append_error(SESSION_ID, "t", message)
    repository.append_error(SESSION_ID, "t", "x" * 90_000)
    assert len(stored(repository).error_history) == 1
    engine.dispose()


# --- consistent reads ---


@pytest.mark.parametrize("name", ["sqlite", "postgresql", "mariadb", "postgresql_elsewhere", "mariadb_elsewhere"])
def test_read_during_replacement_returns_one_incarnation(name: str, request: pytest.FixtureRequest) -> None:
    storage: Storage = request.getfixturevalue(name)
    engine = storage.new_engine()
    other = SQLAlchemySessionRepository(create_engine(engine.url))
    repository = SQLAlchemySessionRepository(engine)
    first = full_session()
    other.create_session(first)
    replacements: list[Session] = []

    @sqlalchemy.event.listens_for(engine, "after_cursor_execute")
    def replace(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "FROM vibeforge_sessions" in statement and not replacements:  # between the session's row and its histories
            replacements.append(Session(session_id=SESSION_ID))
            other.delete_session(SESSION_ID)
            replacements[0].add_error("second incarnation", "m")
            other.create_session(replacements[0])

    try:
        found = stored(repository)
    except CorruptSessionError:
        pytest.fail("the read mixed two incarnations")
    assert_same(found, first if found.created_at == first.created_at else replacements[0])
    assert [entry.task_id for entry in stored(repository).error_history] == ["second incarnation"]
    other._transactions.bind.engine.dispose()
    engine.dispose()


@pytest.mark.parametrize("fast_path", [True, False], ids=["precompiled", "through SQLAlchemy"])
def test_entries_are_ordered_without_index_scan(postgresql: Storage, fast_path: bool) -> None:
    engine = postgresql.new_engine()

    @sqlalchemy.event.listens_for(engine, "connect")
    def connect(connection: Any, _record: object) -> None:
        connection.execute("SET enable_indexscan = off; SET enable_bitmapscan = off")  # returns rows in physical order

    repository = SQLAlchemySessionRepository(engine, fast_path=fast_path)
    session = full_session()
    for number in range(4):
        session.add_error("t", str(number))
        session.add_log(str(number))
    repository.create_session(session)
    with engine.begin() as connection:  # moves the first entries to the end
        for table in ("errors", "logs"):
            connection.execute(text(f"UPDATE vibeforge_session_{table} SET write_id = 'moved' WHERE position < 3"))
    assert_same(stored(repository), session)
    engine.dispose()


@pytest.mark.parametrize("level", ["READ COMMITTED", "AUTOCOMMIT"])
@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_engine_with_other_isolation_level_rolls_back_failed_update(
    name: str, level: Any, request: pytest.FixtureRequest
) -> None:
    storage: Storage = request.getfixturevalue(name)
    assert storage.new_url is not None
    url = storage.new_url()
    for engine in (
        create_engine(url, isolation_level=level),
        create_engine(url).execution_options(isolation_level=level),
    ):
        repository = SQLAlchemySessionRepository(engine)
        repository.create_session(full_session())
        before = stored(repository)
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM vibeforge_session_documents"))
        with pytest.raises(CorruptSessionError):
            repository.modify_session(SESSION_ID, lambda session: session.add_answer("q", 1))
        session = before
        session.add_answer("q", 1)
        with pytest.raises(CorruptSessionError, match="documents are missing"):
            repository.update_session(session)
        assert repository.find_sessions().items[0].version == 1  # rolled back
        assert repository.delete_session(SESSION_ID)
        engine.dispose()


@pytest.mark.parametrize("fast_path", [True, False], ids=["precompiled", "through SQLAlchemy"])
@pytest.mark.parametrize("make", [create_engine, sqlalchemy.create_engine], ids=["package", "SQLAlchemy"])
def test_settings_of_connect_listener_are_kept(postgresql: Storage, make: Any, fast_path: bool) -> None:
    assert postgresql.new_url is not None
    engine = make(postgresql.new_url())

    @sqlalchemy.event.listens_for(engine, "connect")
    def connect(connection: Any, _record: object) -> None:
        connection.execute("SET application_name = 'forge'")  # leaves a transaction open

    repository = SQLAlchemySessionRepository(engine, fast_path=fast_path)
    for _ in range(2):
        repository.create_session()
        assert repository.delete_session(repository.list_sessions()[0])
    with engine.connect() as connection:
        assert connection.execute(text("SHOW application_name")).scalar() == "forge"
    engine.dispose()


def test_server_options_of_url_are_kept(postgresql: Storage) -> None:
    url = postgresql.url_with("postgresql+psycopg")
    for engine in (
        create_engine(url + "?options=-csearch_path%3Dforge"),
        create_engine(url, connect_args={"options": "-c search_path=forge"}),
    ):
        with engine.connect() as connection:
            assert connection.execute(text("SHOW search_path")).scalar() == "forge"
            assert connection.execute(text("SHOW TimeZone")).scalar() == "UTC"
        engine.dispose()


def test_mariadb_init_command_is_kept(mariadb: Storage) -> None:
    engine = create_engine(mariadb.url_with("mysql+pymysql"), connect_args={"init_command": "SET @value = 7"})
    with engine.connect() as connection:
        value, mode = connection.execute(text("SELECT @value, @@sql_mode")).one()
        assert value == 7
        assert "STRICT_ALL_TABLES" in mode
    engine.dispose()


@pytest.mark.parametrize("query", ["?bogus=1", "?connect_timeout=abc"])
def test_unknown_or_malformed_driver_option_raises_configuration_error(mariadb: Storage, query: str) -> None:
    for call in (lambda engine: SQLAlchemySessionRepository(engine).list_sessions(), migrate.upgrade):
        with pytest.raises(ConfigurationError, match=r"could not reach|an option in the database URL"):
            call(create_engine(mariadb.url_with("mysql+pymysql") + query))


def test_database_with_other_encoding_is_rejected(postgresql_server: AvailableServer) -> None:
    databases = postgresql_server.databases
    options = "ENCODING 'LATIN1'"
    engine = create_engine(databases.create(migrated=False, options=options))
    with pytest.raises(ConfigurationError, match="LATIN1"):
        SQLAlchemySessionRepository(engine).list_sessions()
    engine.dispose()


def test_violation_of_added_constraint_raises_storage_error(postgresql: Storage) -> None:
    engine = postgresql.new_engine()
    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(session_id=SESSION_ID)
    with engine.begin() as connection:
        for table, condition in (("errors", f"error_message <> '{SECRET}'"), ("sessions", "phase <> 'COMPLETE'")):
            name = "vibeforge_sessions" if table == "sessions" else f"vibeforge_session_{table}"
            connection.execute(text(f"ALTER TABLE {name} ADD CHECK ({condition})"))
    with pytest.raises(StorageError) as caught:
        repository.append_error(SESSION_ID, "t", SECRET)
    shown = "".join(traceback.format_exception(caught.value))
    assert "violates check constraint" in shown
    assert SECRET not in shown
    with pytest.raises(StorageError):  # not SessionExistsError
        repository.create_session(Session(session_id="new", phase=SessionPhase.COMPLETE))
    engine.dispose()


def test_many_entries_that_fit_individually_are_stored(small_packets: URL) -> None:
    engine = create_engine(small_packets)
    repository = SQLAlchemySessionRepository(engine)
    session = Session(session_id="many")
    for number in range(30):
        session.add_error("t", str(number) + "'" * 100_000)
        session.add_log("x" * 200_000)
    repository.create_session(session)
    assert_same(stored(repository, "many"), session)
    engine.dispose()


# --- migrations on the caller's connection ---


def test_migration_in_callers_transaction_releases_lock(mariadb_server: AvailableServer) -> None:
    url = mariadb_server.databases.create(migrated=False)
    engine, other = create_engine(url), create_engine(url)
    with engine.begin() as connection:
        migrate.upgrade(connection)
    migrate.downgrade(other, "base", lock_timeout=0)
    engine.dispose()
    other.dispose()


def test_migration_leaves_callers_connection_in_autocommit(postgresql_server: AvailableServer) -> None:
    engine = sqlalchemy.create_engine(postgresql_server.databases.create(migrated=False))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        migrate.upgrade(connection)
        connection.execute(text("CREATE TABLE orders (id integer)"))
    assert "orders" in sqlalchemy.inspect(engine).get_table_names()
    engine.dispose()


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_migration_without_second_connection_raises_schema_error(name: str, request: pytest.FixtureRequest) -> None:
    server: AvailableServer = request.getfixturevalue(f"{name}_server")
    url = server.databases.create(migrated=False)
    engine = create_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    with pytest.raises(SchemaError, match="second connection"):
        migrate.upgrade(engine)
    engine.dispose()


# --- lost connections ---


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_connection_lost_at_commit_raises_outcome_unknown(name: str, request: pytest.FixtureRequest) -> None:
    storage: Storage = request.getfixturevalue(name)
    engine = storage.new_engine()
    other = create_engine(engine.url)
    repository = SQLAlchemySessionRepository(engine, retry=RetryPolicy(attempts=1))
    repository.create_session(session_id=SESSION_ID)
    own, kill = {
        "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend(:id)"),
        "mariadb": ("SELECT CONNECTION_ID()", "KILL :id"),
    }[name]

    def cut(connection: sqlalchemy.Connection, *executed: Any) -> None:
        if executed and "INSERT" not in executed[1]:
            return
        cursor: Any = connection.connection.cursor()
        cursor.execute(own)
        (connection_id,) = cursor.fetchone()
        with other.connect() as killing:
            killing.execute(text(kill), {"id": connection_id})

    # on PostgreSQL, an append is one statement in autocommit
    moment = {"postgresql": "before_cursor_execute", "mariadb": "commit"}[name]
    sqlalchemy.event.listen(engine, moment, cut)
    with pytest.raises(OutcomeUnknownError):
        repository.append_error(SESSION_ID, "t", "m")
    sqlalchemy.event.remove(engine, moment, cut)
    assert repository.list_errors(SESSION_ID) == []  # nothing was written, because no COMMIT was sent
    assert repository.append_error(SESSION_ID, "t", "m").position == 1
    engine.dispose()
    other.dispose()


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_precompiled_append_on_lost_connection_is_retried(name: str, request: pytest.FixtureRequest) -> None:
    storage: Storage = request.getfixturevalue(name)
    assert storage.new_url is not None
    engine = create_engine(storage.new_url(), pool_size=1, max_overflow=0)
    other = create_engine(engine.url)
    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(session_id=SESSION_ID)
    own, kill = {
        "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend(:id)"),
        "mariadb": ("SELECT CONNECTION_ID()", "KILL :id"),
    }[name]
    with engine.connect() as connection:
        connection_id = connection.execute(text(own)).scalar_one()
    with other.connect() as killing:
        killing.execute(text(kill), {"id": connection_id})
    assert repository.append_error(SESSION_ID, "t", "m").position == 1
    with engine.connect() as connection:
        connection_id = connection.execute(text(own)).scalar_one()
    with other.connect() as killing:
        killing.execute(text(kill), {"id": connection_id})
    without_retry = SQLAlchemySessionRepository(engine, retry=RetryPolicy(attempts=1))
    # a statement in autocommit may be committed, but a statement in a transaction is rolled back
    with pytest.raises(OutcomeUnknownError if name == "postgresql" else StorageError):
        without_retry.append_error(SESSION_ID, "t", "m")
    assert repository.append_error(SESSION_ID, "t", "m").position == 2
    engine.dispose()
    other.dispose()


@pytest.mark.parametrize("word", ["INSERT", "UPDATE", "SELECT"])
def test_unusable_connection_that_psycopg_reports_as_open_is_replaced(postgresql: Storage, word: str) -> None:
    """Make a connection unusable, as when psycopg finds the socket closed before libpq does.

    The error has no code, and the server's answer never arrives.
    """
    engine = postgresql.new_engine()
    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(session_id=SESSION_ID)
    disturbed = list[Any]()

    def disturb(connection: sqlalchemy.Connection, _cursor: object, statement: str, *_: object) -> None:
        if word in statement and not disturbed:
            driver: Any = connection.connection.driver_connection
            disturbed.append(driver)
            driver.pgconn.send_query(b"SELECT pg_sleep(0.1)")

    sqlalchemy.event.listen(engine, "before_cursor_execute", disturb)
    assert repository.append_error(SESSION_ID, "t", "m").position == 1
    assert [error.task_id for error in repository.list_errors(SESSION_ID)] == ["t"]
    assert repository.create_session(session_id="other").version == 1
    assert disturbed
    assert disturbed[0].closed
    engine.dispose()


@pytest.mark.parametrize("fast_path", [True, False], ids=["precompiled", "through SQLAlchemy"])
@pytest.mark.parametrize("name", ["sqlite", "postgresql", "mariadb"])
def test_call_leaves_pooled_connection_in_default_state(
    name: str, request: pytest.FixtureRequest, fast_path: bool
) -> None:
    storage: Storage = request.getfixturevalue(name)
    assert storage.new_url is not None
    engine = create_engine(storage.new_url(), pool_size=1, max_overflow=0)
    repository = SQLAlchemySessionRepository(engine, fast_path=fast_path)
    repository.create_session(session_id=SESSION_ID)
    calls = (
        lambda: repository.append_log(SESSION_ID, "m"),
        lambda: repository.get_session(SESSION_ID),
        lambda: repository.delete_session("unknown"),
        lambda: repository.create_session(session_id=SESSION_ID),
    )
    for call in calls:
        with contextlib.suppress(SessionExistsError):
            call()
        with engine.connect() as connection:  # a transaction on the pool's only connection
            if name != "sqlite":
                assert connection.get_isolation_level() == connection.default_isolation_level
            connection.execute(text("UPDATE vibeforge_sessions SET phase = 'FAILED'"))
            connection.rollback()
        assert stored(repository).phase == SessionPhase.QUESTIONNAIRE
    engine.dispose()


def test_deadlock_victim_is_retried(postgresql: Storage) -> None:
    engine = postgresql.new_engine()
    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(session_id=SESSION_ID)
    reject_inserts(engine, "vibeforge_session_errors", 2)
    assert repository.append_error(SESSION_ID, "t", "m").position == 1
    with engine.connect() as connection:
        assert connection.execute(text("SELECT last_value FROM tries")).scalar_one() == 3
    assert len(repository.list_errors(SESSION_ID)) == 1
    engine.dispose()
