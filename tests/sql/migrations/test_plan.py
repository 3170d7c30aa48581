"""Comparison of each revision's declared locks, rewrites and losses with the servers' behavior."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Connection, Engine, event, text

from tests.support.older_code import OlderClient
from tests.support.repositories import text_of
from tests.support.servers import AvailableServer, MariaDBDatabases, MariaDBServer, ServerUnavailable
from tests.support.servers.fixtures import skipping
from tests.support.servers.machine import free_port
from vibeforge_sessions.sql import create_engine, migrate
from vibeforge_sessions.sql.dialects.base import MigrationTimeouts

REVISIONS = migrate.history()
LATER_REVISIONS = REVISIONS[1:]
WEAK = {"AccessShareLock", "RowShareLock", "RowExclusiveLock"}  # locks of reading and writing rows
STRENGTH = [
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
]

each_revision = pytest.mark.parametrize("revision", REVISIONS, ids=lambda each: each.revision)
each_later = pytest.mark.parametrize("revision", LATER_REVISIONS, ids=lambda each: each.revision)


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def new_engine(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Callable[[str], Engine]]:
    engines: list[Engine] = []

    def make(kind: str) -> Engine:
        if kind == "sqlite":
            url = f"sqlite:///{tmp_path}/application.db"
        else:
            server: AvailableServer = request.getfixturevalue(f"{kind}_server")
            url = text_of(server.databases.create(migrated=False))
        engines.append(create_engine(url))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


def at_previous_revision(engine: Engine, revision: migrate.Revision) -> OlderClient:
    """Upgrade the database to the previous revision, and create a session if there are tables."""
    older = OlderClient(engine)
    if revision.after is not None:
        migrate.upgrade(engine, revision.after)
        older.create()
    return older


@each_revision
def test_revision_declares_all_properties(revision: migrate.Revision) -> None:
    assert revision.revision.startswith("vibeforge_")
    assert len(revision.revision) <= 32  # the length of Alembic's column
    assert revision.locks.keys() == {"sqlite", "postgresql", "mariadb"}
    assert set(revision.online) <= {"postgresql", "mariadb"}  # SQLite has one writer
    assert revision.summary.endswith(".")


@each_revision
def test_postgresql_locks_equal_declared_locks(revision: migrate.Revision, new_engine: Callable[[str], Engine]) -> None:
    engine = new_engine("postgresql")
    at_previous_revision(engine, revision)
    before = set(sqlalchemy.inspect(engine).get_table_names())
    seen: dict[str, str] = {}

    def inspect_locks(reader: Connection, pid: int) -> None:
        for table, mode in reader.execute(_LOCKS, {"pid": pid}):
            stronger = table not in seen or STRENGTH.index(mode) > STRENGTH.index(seen[table])
            if table in before and mode in STRENGTH and stronger:
                seen[table] = mode

    with observed(engine, inspect_locks):
        migrate.upgrade(engine, revision.revision)
    assert seen == revision.locks["postgresql"]


_LOCKS = text(
    "SELECT c.relname, l.mode FROM pg_locks l JOIN pg_class c ON c.oid = l.relation "
    "WHERE l.pid = :pid AND c.relkind = 'r' AND c.relname LIKE 'vibeforge%' AND c.relname NOT LIKE '%alembic%'"
)


@contextmanager
def observed(engine: Engine, inspect_locks: Callable[[Connection, int], None]) -> Iterator[None]:
    """Call a function after each statement of a migrating connection, and while CREATE INDEX CONCURRENTLY runs.

    CREATE INDEX CONCURRENTLY releases its locks when it ends. An older transaction makes it wait, so that its locks
    can be read.
    """
    observer = sqlalchemy.create_engine(engine.url, isolation_level="AUTOCOMMIT")
    done = threading.Event()

    def after(connection: Connection, *_: object) -> None:
        with observer.connect() as reader:
            inspect_locks(reader, connection.connection.driver_connection.info.backend_pid)  # type: ignore[union-attr]

    def hold_up(waited: threading.Event) -> None:
        with engine.connect() as older, observer.connect() as reader:
            if "vibeforge_sessions" in sqlalchemy.inspect(engine).get_table_names():
                older.execute(text("UPDATE vibeforge_sessions SET version = version"))
            waited.set()
            while not done.wait(0.005):
                waiting = reader.execute(_WAITING).scalars().all()
                for pid in waiting:
                    inspect_locks(reader, pid)
                if waiting:
                    break

    event.listen(engine, "after_cursor_execute", after)
    ready = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(hold_up, ready)
        ready.wait()
        try:
            yield
        finally:
            done.set()
            event.remove(engine, "after_cursor_execute", after)
        held.result()
    observer.dispose()


_WAITING = text(
    "SELECT pid FROM pg_locks WHERE NOT granted AND locktype IN ('virtualxid', 'relation') AND pid IN "
    "(SELECT pid FROM pg_stat_activity WHERE datname = current_database())"
)


@each_revision
def test_postgresql_rewrites_only_declared_tables(
    revision: migrate.Revision, new_engine: Callable[[str], Engine]
) -> None:
    engine = new_engine("postgresql")
    at_previous_revision(engine, revision)

    def files() -> dict[str, int]:
        query = "SELECT relname, relfilenode FROM pg_class WHERE relkind = 'r' AND relname LIKE 'vibeforge%'"
        with engine.connect() as connection:
            return {row.relname: row.relfilenode for row in connection.execute(text(query))}

    before = files()
    migrate.upgrade(engine, revision.revision)
    after = files()
    assert {name for name, number in before.items() if after.get(name) != number} == set(revision.rewrites)


@each_later
def test_downgrade_loses_only_declared_data(
    revision: migrate.Revision, kind: str, new_engine: Callable[[str], Engine]
) -> None:
    engine = new_engine(kind)
    older = at_previous_revision(engine, revision)
    before = older.everything()
    migrate.upgrade(engine, revision.revision)
    older.fill(earlier=before["vibeforge_sessions"][0])
    between = older.everything()
    assert revision.after is not None
    migrate.downgrade(engine, revision.after)
    assert older.everything() == before
    assert (between == before) == (revision.loses is None)


@each_later
def test_online_migration_does_not_block_writers(
    revision: migrate.Revision, new_engine: Callable[[str], Engine]
) -> None:
    for kind in revision.online:
        engine = new_engine(kind)
        older = at_previous_revision(engine, revision)
        other = create_engine(engine.url)
        with ThreadPoolExecutor(1) as pool:
            migration = pool.submit(migrate.upgrade, other, revision.revision)
            written = 0
            while not migration.done() or not written:
                older.append_log()
                written += 1
            migration.result()
        assert older.count_logs() == written
        other.dispose()


@each_later
def test_postgresql_migration_waiting_for_open_transaction_does_not_block_writers(
    revision: migrate.Revision, new_engine: Callable[[str], Engine]
) -> None:
    if "postgresql" not in revision.online:
        pytest.skip("the revision is not declared online on PostgreSQL")
    engine = new_engine("postgresql")
    older = at_previous_revision(engine, revision)
    older.create("other")
    migrating = create_engine(engine.url)
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as writer:
            writer.execute(text("UPDATE vibeforge_sessions SET version = version WHERE session_id = 'session-1'"))
            migration = pool.submit(migrate.upgrade, migrating, revision.revision)
            with engine.connect() as reader:
                while not reader.execute(_WAITING).scalars().all() and not migration.done():
                    reader.rollback()
                    time.sleep(0.01)
            older.append_log("other")
        migration.result()
    assert older.count_logs("other") == 1
    migrating.dispose()


@each_later
def test_mariadb_locks_equal_declared_locks(revision: migrate.Revision, new_engine: Callable[[str], Engine]) -> None:
    """Compare the LOCK clauses. The server rejects LOCK=NONE if it needs a lock, so the clause is the actual lock."""
    engine = new_engine("mariadb")
    at_previous_revision(engine, revision)
    requested: dict[str, str] = {}

    def before(_connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        words = statement.split()
        if words[:2] == ["ALTER", "TABLE"]:
            requested[words[2]] = words[-1]

    event.listen(engine, "before_cursor_execute", before)
    migrate.upgrade(engine, revision.revision)
    assert requested == revision.locks["mariadb"]


# Plain CREATE INDEX has blocked a cluster permanently. During any ALTER TABLE, no client can write on Galera.
@each_later
def test_galera_migration_alters_tables_with_exclusive_lock(revision: migrate.Revision) -> None:
    provider = next(Path("/usr").glob("lib*/galera*/libgalera_smm.so"), None)
    with skipping():
        if provider is None:
            raise ServerUnavailable("Galera is not installed (Debian: galera-4)")
    options = {
        "on": "ON",
        "provider": str(provider),
        "cluster-address": "gcomm://",
        "node-address": "127.0.0.1",
        "provider-options": f"gmcast.listen_addr=tcp://127.0.0.1:{free_port()};gcache.size=1M",
    }
    args = [*(f"--wsrep-{name}={value}" for name, value in options.items()), "--wsrep-new-cluster"]
    altered: list[str] = []

    def before(_connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("ALTER TABLE"):
            altered.append(statement.rsplit(maxsplit=1)[-1])

    with MariaDBServer(args=[*args, "--binlog-format=ROW", "--innodb-autoinc-lock-mode=2"]) as server:
        engine = create_engine(MariaDBDatabases(server.url).create(migrated=False))
        older = at_previous_revision(engine, revision)
        event.listen(engine, "before_cursor_execute", before)
        migrate.upgrade(engine)
        migrate.check_schema(engine, exact=True)
        assert revision.after is not None
        migrate.downgrade(engine, revision.after)
        older.append_log()
        engine.dispose()
    assert set(altered) <= {"LOCK=EXCLUSIVE"}


@pytest.mark.parametrize("kind", ["sqlite", "mariadb"])
def test_migration_waits_for_table_lock_until_timeout(new_engine: Callable[[str], Engine], kind: str) -> None:
    """Migrate while another transaction has written.

    On SQLite and MariaDB its lock blocks each migration, even an online one. The migration stops after `lock_timeout`.
    """
    engine = new_engine(kind)
    at_previous_revision(engine, LATER_REVISIONS[0])
    migrating = create_engine(engine.url)
    with engine.begin() as writer:
        writer.execute(text("UPDATE vibeforge_sessions SET version = version"))
        with pytest.raises(Exception, match=r"1205|writing to the file"):
            migrate.upgrade(migrating, lock_timeout=1)
    migrate.upgrade(migrating)
    assert MigrationTimeouts().table == 10
    migrating.dispose()
