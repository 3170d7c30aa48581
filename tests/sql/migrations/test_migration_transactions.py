"""Whose transaction a migration runs in, and who commits it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine

from tests.support.migrations import (
    FILES,
    HEAD,
    HOST,
    MEMORY,
    committed,
    fill,
    foreign_keys,
    opened,
    run_script,
)
from vibeforge_sessions import SchemaError, StorageError
from vibeforge_sessions.sql import metadata, migrate
from vibeforge_sessions.sql.tables import VERSION_TABLE


@pytest.fixture(params=[*FILES, MEMORY])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    with opened(request.param, tmp_path / "host.db") as engine:
        yield engine


@pytest.fixture(params=FILES)
def file_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    with opened(request.param, tmp_path / "host.db") as engine:
        yield engine


def test_with_an_engine_it_is_committed(engine: Engine) -> None:
    migrate.upgrade(engine)
    assert migrate.current(engine) == HEAD
    migrate.check(engine)
    assert set(metadata.tables) < set(committed(engine))
    migrate.downgrade(engine, "base")
    assert set(metadata.tables).isdisjoint(committed(engine))
    assert not hasattr(engine.pool, "checkedout") or engine.pool.checkedout() == 0


def test_with_a_connection_outside_a_transaction_it_is_committed(file_engine: Engine) -> None:
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


# Left in the transaction that reading begins, the next upgrade would take that for the host's, and commit nothing.
@pytest.mark.parametrize("look", [migrate.current, migrate.check])
def test_looking_leaves_a_connection_as_it_was(file_engine: Engine, look: Callable[[Connection], object]) -> None:
    migrate.upgrade(file_engine)
    with file_engine.connect() as connection:
        look(connection)
        assert not connection.in_transaction()


# The same, as a host would meet it: the tables would be gone again, and nobody told.
def test_a_connection_is_checked_and_then_upgraded(file_engine: Engine) -> None:
    with file_engine.connect() as connection:
        assert migrate.current(connection) is None
        migrate.upgrade(connection)
    assert migrate.current(file_engine) == HEAD


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_in_the_hosts_transaction_an_upgrade_is_the_hosts_to_commit(file_engine: Engine, end: str) -> None:
    run_script(file_engine, HOST)
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


def test_a_host_that_rolls_back_without_writing_anything_itself(engine: Engine) -> None:
    """Python's driver begins nothing for DDL: without a BEGIN of ours, each statement would commit itself."""
    before = committed(engine)
    with engine.connect() as connection:
        connection.begin()
        migrate.upgrade(connection)
        connection.rollback()
    assert committed(engine) == before


def test_a_downgrade_is_rolled_back_by_the_host(tmp_path: Path) -> None:
    with opened("plain", tmp_path / "host.db") as engine:
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


def test_the_second_upgrade_does_nothing(engine: Engine) -> None:
    migrate.upgrade(engine)
    fill(engine)
    before = committed(engine)
    migrate.upgrade(engine)
    migrate.upgrade(engine, HEAD)
    with engine.connect() as connection:
        migrate.upgrade(connection)
    assert committed(engine) == before


# As a host does that upgrades in its transaction at each start; with foreign keys on there is nothing to lose in it.
def test_the_second_upgrade_does_nothing_in_the_hosts_transaction(engine: Engine) -> None:
    with engine.begin() as connection:
        migrate.upgrade(connection)
    fill(engine)
    before = committed(engine)
    with engine.begin() as connection:
        migrate.upgrade(connection)
    assert committed(engine) == before


# ------------------------------------------------------------------------------- foreign keys in the host's transaction


@pytest.mark.parametrize("kind", ["ours", "plain with foreign keys", "recipe", MEMORY])
def test_a_downgrade_with_foreign_keys_on_is_refused_in_the_hosts_transaction(kind: str, tmp_path: Path) -> None:
    with opened(kind, tmp_path / "host.db") as engine:
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


def test_foreign_keys_are_as_they_were_after_a_failure(file_engine: Engine) -> None:
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


# --------------------------------------------------------------------------------------------------- a database in use


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a writer."""
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        yield


def impatient(connection: Connection) -> Connection:
    """Let it wait for nobody."""
    driver = connection.connection.driver_connection
    assert driver is not None
    driver.execute("PRAGMA busy_timeout = 0")
    return connection


# "recipe" begins as a reader: the lock must be taken all the same; see test_migrate_races.py.
@pytest.mark.parametrize("with_connection", [False, True])
def test_a_lock_that_stays_is_told(file_engine: Engine, with_connection: bool, tmp_path: Path) -> None:
    file_engine.connect().close()  # in the pool; a first connection of ours would wait to change the file to WAL
    before = committed(file_engine)
    with file_engine.connect() if with_connection else nullcontext(file_engine) as bind:
        with locked(tmp_path / "host.db"), pytest.raises(SchemaError, match="writing to the file") as caught:
            migrate.upgrade(bind, lock_timeout=0)
        assert caught.value.state is None
        assert committed(file_engine) == before
        migrate.upgrade(bind, lock_timeout=0)
    migrate.check(file_engine)


def test_a_lock_that_stays_is_told_in_the_hosts_transaction(file_engine: Engine, tmp_path: Path) -> None:
    before = committed(file_engine)
    with impatient(file_engine.connect()) as connection:
        connection.begin()
        with locked(tmp_path / "host.db"), pytest.raises(StorageError, match="SQLITE_BUSY"):
            migrate.upgrade(connection)
        connection.rollback()
        assert committed(file_engine) == before
        migrate.upgrade(connection)
    migrate.check(file_engine)


def test_the_hosts_patience_is_given_back(file_engine: Engine) -> None:
    with impatient(file_engine.connect()) as connection:
        migrate.upgrade(connection)
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 0
