"""What the revisions say of themselves, held against what the servers do: so it cannot rot."""

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
from vibeforge_sessions.sql.dialects import MigrationTimeouts

REVISIONS = migrate.history()
AFTER_THE_FIRST = REVISIONS[1:]
WEAK = {"AccessShareLock", "RowShareLock", "RowExclusiveLock"}  # of those who read and write rows
STRENGTH = [
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
]

each_revision = pytest.mark.parametrize("revision", REVISIONS, ids=lambda each: each.revision)
each_later = pytest.mark.parametrize("revision", AFTER_THE_FIRST, ids=lambda each: each.revision)


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def new_engine(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Callable[[str], Engine]]:
    engines: list[Engine] = []

    def make(kind: str) -> Engine:
        if kind == "sqlite":
            url = f"sqlite:///{tmp_path}/host.db"
        else:
            server: AvailableServer = request.getfixturevalue(f"{kind}_server")
            url = text_of(server.databases.create(migrated=False))
        engines.append(create_engine(url))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


def at_the_one_before(engine: Engine, revision: migrate.Revision) -> OlderClient:
    """Bring the database to where the revision begins, with a session in it if there are tables."""
    older = OlderClient(engine)
    if revision.after is not None:
        migrate.upgrade(engine, revision.after)
        older.create()
    return older


@each_revision
def test_every_revision_says_it_all(revision: migrate.Revision) -> None:
    assert revision.revision.startswith("vibeforge_")
    assert len(revision.revision) <= 32  # Alembic's column
    assert revision.locks.keys() == {"sqlite", "postgresql", "mariadb"}
    assert set(revision.online) <= {"postgresql", "mariadb"}  # SQLite has one writer
    assert revision.summary.endswith(".")


@each_revision
def test_the_locks_on_postgresql(revision: migrate.Revision, new_engine: Callable[[str], Engine]) -> None:
    engine = new_engine("postgresql")
    at_the_one_before(engine, revision)
    before = set(sqlalchemy.inspect(engine).get_table_names())
    seen: dict[str, str] = {}

    def look(asking: Connection, pid: int) -> None:
        for table, mode in asking.execute(_LOCKS, {"pid": pid}):
            stronger = table not in seen or STRENGTH.index(mode) > STRENGTH.index(seen[table])
            if table in before and mode in STRENGTH and stronger:
                seen[table] = mode

    with watched(engine, look):
        migrate.upgrade(engine, revision.revision)
    assert seen == revision.locks["postgresql"]


_LOCKS = text(
    "SELECT c.relname, l.mode FROM pg_locks l JOIN pg_class c ON c.oid = l.relation "
    "WHERE l.pid = :pid AND c.relkind = 'r' AND c.relname LIKE 'vibeforge%' AND c.relname NOT LIKE '%alembic%'"
)


@contextmanager
def watched(engine: Engine, look: Callable[[Connection, int], None]) -> Iterator[None]:
    """Look at each migrating connection after each of its statements, and while an index is made CONCURRENTLY.

    That one keeps its locks no longer than it runs: it is made to wait by a transaction that is older.
    """
    watching = sqlalchemy.create_engine(engine.url, isolation_level="AUTOCOMMIT")
    done = threading.Event()

    def after(connection: Connection, *_: object) -> None:
        with watching.connect() as asking:
            look(asking, connection.connection.driver_connection.info.backend_pid)  # type: ignore[union-attr]

    def hold_up(waited: threading.Event) -> None:
        with engine.connect() as older, watching.connect() as asking:
            if "vibeforge_sessions" in sqlalchemy.inspect(engine).get_table_names():
                older.execute(text("UPDATE vibeforge_sessions SET version = version"))
            waited.set()
            while not done.wait(0.005):
                waiting = asking.execute(_WAITING).scalars().all()
                for pid in waiting:
                    look(asking, pid)
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
    watching.dispose()


_WAITING = text(
    "SELECT pid FROM pg_locks WHERE NOT granted AND locktype IN ('virtualxid', 'relation') AND pid IN "
    "(SELECT pid FROM pg_stat_activity WHERE datname = current_database())"
)


@each_revision
def test_what_is_rewritten_on_postgresql(revision: migrate.Revision, new_engine: Callable[[str], Engine]) -> None:
    engine = new_engine("postgresql")
    at_the_one_before(engine, revision)

    def files() -> dict[str, int]:
        asked = "SELECT relname, relfilenode FROM pg_class WHERE relkind = 'r' AND relname LIKE 'vibeforge%'"
        with engine.connect() as connection:
            return {row.relname: row.relfilenode for row in connection.execute(text(asked))}

    before = files()
    migrate.upgrade(engine, revision.revision)
    after = files()
    assert {name for name, number in before.items() if after.get(name) != number} == set(revision.rewrites)


@each_later
def test_what_a_downgrade_loses(revision: migrate.Revision, kind: str, new_engine: Callable[[str], Engine]) -> None:
    engine = new_engine(kind)
    older = at_the_one_before(engine, revision)
    before = older.everything()
    migrate.upgrade(engine, revision.revision)
    older.fill()
    between = older.everything()
    assert revision.after is not None
    migrate.downgrade(engine, revision.after)
    assert older.everything() == before
    assert (between == before) == (revision.loses is None)


@each_later
def test_others_write_meanwhile(revision: migrate.Revision, new_engine: Callable[[str], Engine]) -> None:
    """While it waits for somebody's open transaction, too: there an ordinary lock would keep everybody out."""
    for kind in revision.online:
        engine = new_engine(kind)
        older = at_the_one_before(engine, revision)
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
def test_an_open_transaction_of_a_writer_keeps_nobody_out_on_postgresql(
    revision: migrate.Revision, new_engine: Callable[[str], Engine]
) -> None:
    if "postgresql" not in revision.online:
        pytest.skip("it says that it keeps others out")
    engine = new_engine("postgresql")
    older = at_the_one_before(engine, revision)
    older.create("other")
    migrating = create_engine(engine.url)
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as writer:
            writer.execute(text("UPDATE vibeforge_sessions SET version = version WHERE session_id = 'session-1'"))
            migration = pool.submit(migrate.upgrade, migrating, revision.revision)
            with engine.connect() as asking:
                while not asking.execute(_WAITING).scalars().all() and not migration.done():
                    asking.rollback()
                    time.sleep(0.01)
            older.append_log("other")
        migration.result()
    assert older.count_logs("other") == 1
    migrating.dispose()


@each_later
def test_the_lock_on_mariadb(revision: migrate.Revision, new_engine: Callable[[str], Engine]) -> None:
    """The server itself refuses LOCK=NONE where it cannot keep it, so what is asked for is what happens."""
    engine = new_engine("mariadb")
    at_the_one_before(engine, revision)
    asked: dict[str, str] = {}

    def before(_connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        words = statement.split()
        if words[:2] == ["ALTER", "TABLE"]:
            asked[words[2]] = words[-1]

    event.listen(engine, "before_cursor_execute", before)
    migrate.upgrade(engine, revision.revision)
    assert asked == revision.locks["mariadb"]


# Plain CREATE INDEX has hung a cluster, and nobody can write during any ALTER there.
@each_later
def test_on_galera_a_table_is_altered_alone(revision: migrate.Revision) -> None:
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
        older = at_the_one_before(engine, revision)
        event.listen(engine, "before_cursor_execute", before)
        migrate.upgrade(engine)
        migrate.check_schema(engine, exact=True)
        assert revision.after is not None
        migrate.downgrade(engine, revision.after)
        older.append_log()
        engine.dispose()
    assert set(altered) <= {"LOCK=EXCLUSIVE"}


@pytest.mark.parametrize("kind", ["sqlite", "mariadb"])
def test_a_tables_lock_is_not_waited_for_without_end(new_engine: Callable[[str], Engine], kind: str) -> None:
    """An open transaction of a writer stops a migration there, even an online one; it gives up when it was told to."""
    engine = new_engine(kind)
    at_the_one_before(engine, AFTER_THE_FIRST[0])
    migrating = create_engine(engine.url)
    with engine.begin() as writer:
        writer.execute(text("UPDATE vibeforge_sessions SET version = version"))
        with pytest.raises(Exception, match=r"1205|writing to the file"):
            migrate.upgrade(migrating, lock_timeout=1)
    migrate.upgrade(migrating)
    assert MigrationTimeouts().table == 10
    migrating.dispose()
