"""Transactions of migrations: their own, or the caller's."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine

from tests.support.migrations import (
    HEAD,
    MEMORY,
    OTHER_APPLICATION,
    committed,
    fill,
    foreign_keys,
    opened,
    run_script,
)
from vibeforge_sessions import SchemaError, StorageError
from vibeforge_sessions.sql import metadata, migrate
from vibeforge_sessions.sql.tables import VERSION_TABLE


def test_migration_with_engine_is_committed(engine: Engine) -> None:
    migrate.upgrade(engine)
    assert migrate.current(engine) == HEAD
    migrate.check(engine)
    assert set(metadata.tables) < set(committed(engine))
    migrate.downgrade(engine, "base")
    assert set(metadata.tables).isdisjoint(committed(engine))
    assert not hasattr(engine.pool, "checkedout") or engine.pool.checkedout() == 0


def test_migration_with_connection_outside_transaction_is_committed(file_engine: Engine) -> None:
    were_on = foreign_keys(file_engine)
    with file_engine.connect() as connection:
        migrate.upgrade(connection)
        assert not connection.in_transaction()
        assert committed(file_engine)[VERSION_TABLE] == [(HEAD,)]
        assert bool(connection.exec_driver_sql("PRAGMA foreign_keys").scalar()) is were_on
        connection.rollback()
        migrate.downgrade(connection, "base")
        assert not connection.in_transaction()
        assert set(metadata.tables).isdisjoint(committed(file_engine))


# Reading begins a transaction. If it stayed open, the next upgrade would run in it and not commit.
@pytest.mark.parametrize("check", [migrate.current, migrate.check])
def test_status_check_leaves_connection_outside_transaction(
    file_engine: Engine, check: Callable[[Connection], object]
) -> None:
    migrate.upgrade(file_engine)
    with file_engine.connect() as connection:
        check(connection)
        assert not connection.in_transaction()


# In a transaction that the check left open, the tables would be rolled back without an error.
def test_upgrade_after_status_check_on_same_connection_is_committed(file_engine: Engine) -> None:
    with file_engine.connect() as connection:
        assert migrate.current(connection) is None
        migrate.upgrade(connection)
    assert migrate.current(file_engine) == HEAD


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_upgrade_in_callers_transaction_ends_with_it(file_engine: Engine, end: str) -> None:
    run_script(file_engine, OTHER_APPLICATION)
    before = committed(file_engine)
    with file_engine.connect() as connection:
        connection.begin()
        connection.exec_driver_sql("INSERT INTO sessions VALUES ('s2', 'in the same transaction')")
        migrate.upgrade(connection)
        assert connection.in_transaction()
        migrate.check(connection)
        assert migrate.current(connection) == HEAD
        assert connection.in_transaction()
        assert committed(file_engine) == before
        getattr(connection, end)()
    after = committed(file_engine)
    if end == "rollback":
        assert after == before
    else:
        assert after[VERSION_TABLE] == [(HEAD,)]
        assert len(after["sessions"]) == len(before["sessions"]) + 1


def test_rollback_of_callers_transaction_without_other_writes_undoes_upgrade(engine: Engine) -> None:
    """Upgrade as the first action of the transaction.

    Python's driver begins no transaction for DDL. Without an explicit BEGIN, each statement would commit itself.
    """
    before = committed(engine)
    with engine.connect() as connection:
        connection.begin()
        migrate.upgrade(connection)
        connection.rollback()
    assert committed(engine) == before


def test_rollback_of_callers_transaction_undoes_downgrade(tmp_path: Path) -> None:
    with opened("plain", tmp_path / "application.db") as engine:
        migrate.upgrade(engine)
        fill(engine)
        before = committed(engine)
        with engine.connect() as connection:
            connection.begin()
            migrate.downgrade(connection, "base")
            assert migrate.current(connection) is None
            assert connection.in_transaction()
            assert committed(engine) == before
            connection.rollback()
        assert committed(engine) == before
        with engine.begin() as connection:
            migrate.downgrade(connection, "base")
        assert set(metadata.tables).isdisjoint(committed(engine))


def test_second_upgrade_changes_nothing(engine: Engine) -> None:
    migrate.upgrade(engine)
    fill(engine)
    before = committed(engine)
    migrate.upgrade(engine)
    migrate.upgrade(engine, HEAD)
    with engine.connect() as connection:
        migrate.upgrade(connection)
    assert committed(engine) == before


# An application may upgrade in its transaction at each start. This succeeds with foreign keys on if nothing is pending.
def test_second_upgrade_in_callers_transaction_changes_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        migrate.upgrade(connection)
    fill(engine)
    before = committed(engine)
    with engine.begin() as connection:
        migrate.upgrade(connection)
    assert committed(engine) == before


# ----------------------------------------------------------------------------- foreign keys in the caller's transaction


@pytest.mark.parametrize("kind", ["package", "plain with foreign keys", "recipe", MEMORY])
def test_downgrade_with_foreign_keys_in_callers_transaction_is_rejected(kind: str, tmp_path: Path) -> None:
    with opened(kind, tmp_path / "application.db") as engine:
        migrate.upgrade(engine)
        fill(engine)
        before = committed(engine)
        with engine.begin() as connection:
            with pytest.raises(SchemaError, match="pass the Engine, or a Connection that is not in a transaction"):
                migrate.downgrade(connection, "base")
            assert connection.in_transaction()
        assert committed(engine) == before
        assert foreign_keys(engine)
        migrate.downgrade(engine, "base")  # the fix that the message names
        assert set(metadata.tables).isdisjoint(committed(engine))
        assert foreign_keys(engine)


def test_failed_migration_restores_foreign_keys_setting(file_engine: Engine) -> None:
    migrate.upgrade(file_engine)
    were_on = foreign_keys(file_engine)
    for bind in (file_engine, file_engine.connect()):
        with pytest.raises(SchemaError):
            migrate.downgrade(bind, "f00d")
        if isinstance(bind, Connection):
            assert not bind.in_transaction()
            assert bool(bind.exec_driver_sql("PRAGMA foreign_keys").scalar()) is were_on
            bind.close()
    assert foreign_keys(file_engine) is were_on


# ----------------------------------------------------------------------------------------------------- locked databases


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a writer's lock on the file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        yield


def without_busy_timeout(connection: Connection) -> Connection:
    """Set the busy timeout to zero, so that the connection does not wait for locks."""
    driver = connection.connection.driver_connection
    assert driver is not None
    driver.execute("PRAGMA busy_timeout = 0")
    return connection


# "recipe" begins transactions as a reader, but a migration must take the lock; see test_concurrent_migrations.py.
@pytest.mark.parametrize("with_connection", [False, True], ids=["engine", "connection"])
def test_lock_held_beyond_timeout_raises_schema_error(
    file_engine: Engine, with_connection: bool, tmp_path: Path
) -> None:
    file_engine.connect().close()  # fills the pool: the first connection changes the file to WAL and would wait for it
    before = committed(file_engine)
    with file_engine.connect() if with_connection else nullcontext(file_engine) as bind:
        with locked(tmp_path / "application.db"), pytest.raises(SchemaError, match="writing to the file") as caught:
            migrate.upgrade(bind, lock_timeout=0)
        assert caught.value.state is None
        assert committed(file_engine) == before
        migrate.upgrade(bind, lock_timeout=0)
    migrate.check(file_engine)


def test_lock_during_callers_transaction_raises_storage_error(file_engine: Engine, tmp_path: Path) -> None:
    before = committed(file_engine)
    with without_busy_timeout(file_engine.connect()) as connection:
        connection.begin()
        with locked(tmp_path / "application.db"), pytest.raises(StorageError, match="SQLITE_BUSY"):
            migrate.upgrade(connection)
        connection.rollback()
        assert committed(file_engine) == before
        migrate.upgrade(connection)
    migrate.check(file_engine)


def test_migration_restores_callers_busy_timeout(file_engine: Engine) -> None:
    with without_busy_timeout(file_engine.connect()) as connection:
        migrate.upgrade(connection)
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 0
