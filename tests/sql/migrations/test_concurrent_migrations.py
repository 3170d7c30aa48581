"""Concurrent migrations by replicas of a service and by threads of one process."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.migrations import FILES, HEAD, MEMORY, committed, fill, opened
from tests.support.preloaded import preloaded_python
from vibeforge_sessions import SQLAlchemySessionRepository
from vibeforge_sessions.sql import metadata, migrate
from vibeforge_sessions.sql.tables import VERSION_TABLE

REPLICAS = 8

CHILD = """
import sys
from pathlib import Path
from tests.support.migrations import opened
from vibeforge_sessions.sql import migrate

kind, database, action, *arguments = sys.argv[1:]
with opened(kind, Path(database)) as engine:
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        getattr(migrate, action)(engine, *arguments)
        migrate.check(engine)
        print("done", flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""

READER = """
import sys, threading, time
from pathlib import Path
from sqlalchemy import inspect
from tests.support.migrations import opened

stopped = threading.Event()
def wait():
    sys.stdin.readline()
    stopped.set()
threading.Thread(target=wait, daemon=True).start()
seen = set()
with opened(sys.argv[1], Path(sys.argv[2])) as engine:
    print("ready", flush=True)
    while True:
        last = stopped.is_set()
        with engine.begin() as connection:
            names = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars().all()
            seen.add(len(names))
        if last:
            break
        time.sleep(0.002)  # leaves processor time to the migrating processes
print(sorted(seen), flush=True)
"""
"""Program that counts the tables in one transaction after another, and prints the different counts."""


@contextmanager
def running(program: str, *arguments: str, count: int = 1) -> Iterator[list[subprocess.Popen[str]]]:
    """Start processes, yield them when all are ready, and kill them at the end. Each one waits for a line of input."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [*preloaded_python(), "-c", program, *arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
            )
            for _ in range(count)
        ]
        for process in processes:
            stack.callback(process.kill)
        for process in processes:
            assert line_of(process) == "ready"
        yield processes


def go(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


# "recipe" begins transactions as a reader. Without a lock all replicas would read an empty schema, one would write, and
# the others would fail with SQLITE_BUSY, however long they wait.
@pytest.mark.parametrize("kind", FILES)
def test_replicas_that_migrate_concurrently_all_succeed(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "application.db"
    with running(CHILD, kind, str(path), "upgrade", count=REPLICAS) as processes:
        go(processes)
        assert [line_of(process) for process in processes] == ["done"] * REPLICAS
    with opened(kind, path) as engine:
        assert committed(engine)[VERSION_TABLE] == [(HEAD,)]
        fill(engine)


@pytest.mark.parametrize("kind", ["package", "plain", "plain with foreign keys"])
def test_readers_during_concurrent_migrations_see_all_tables_or_none(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "application.db"
    with running(READER, kind, str(path), count=2) as readers:
        with running(CHILD, kind, str(path), "upgrade", count=REPLICAS) as processes:
            go(processes)
            assert [line_of(process) for process in processes] == ["done"] * REPLICAS
        go(readers)
        complete = len(metadata.tables) + 1
        for reader in readers:
            assert line_of(reader) in {f"[0, {complete}]", f"[{complete}]"}


@pytest.mark.parametrize("kind", ["package", "plain"])
def test_concurrent_migrations_of_current_database_leave_data_unchanged(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "application.db"
    with opened(kind, path) as engine:
        migrate.upgrade(engine)
        fill(engine)
        before = committed(engine)
        with running(CHILD, kind, str(path), "upgrade", count=4) as processes:
            go(processes)
            assert [line_of(process) for process in processes] == ["done"] * 4
        assert committed(engine) == before


@pytest.mark.parametrize("kind", [*FILES, MEMORY])
def test_threads_upgrade_separate_databases(kind: str, tmp_path: Path) -> None:
    start = threading.Barrier(4)

    def migrate_and_fill(number: int) -> int:
        with opened(kind, tmp_path / f"{number}.db") as engine:
            start.wait()
            for _ in range(3):
                migrate.upgrade(engine)
                migrate.check(engine)
                fill(engine)
                migrate.downgrade(engine, "base")
            migrate.upgrade(engine)
            fill(engine)
            return len(SQLAlchemySessionRepository(engine).list_sessions())

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(migrate_and_fill, range(4))) == [3, 3, 3, 3]


@pytest.mark.parametrize("kind", ["package", "plain", MEMORY])
def test_threads_upgrade_same_database(kind: str, tmp_path: Path) -> None:
    start = threading.Barrier(8)
    with opened(kind, tmp_path / "application.db") as engine:

        def upgrade(_: int) -> str | None:
            start.wait()
            migrate.upgrade(engine)
            migrate.check(engine)
            return migrate.current(engine)

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(upgrade, range(8))) == {HEAD}


@pytest.mark.parametrize("kind", FILES)
def test_status_checks_do_not_disturb_migration_in_another_thread(kind: str, tmp_path: Path) -> None:
    """Check one database while another thread migrates another one.

    Alembic's scripts use a context that is global to the process, so a check must not replace it.
    """
    stop = threading.Event()
    with opened(kind, tmp_path / "other.db") as other, opened(kind, tmp_path / "application.db") as engine:
        migrate.upgrade(other)

        def check(_: int) -> None:
            while not stop.is_set():
                migrate.check(other)
                assert migrate.current(other) == HEAD

        with ThreadPoolExecutor(3) as pool:
            checks = [pool.submit(check, number) for number in range(3)]
            try:
                for _ in range(5):
                    migrate.upgrade(engine)
                    migrate.downgrade(engine, "base")
            finally:
                stop.set()
            for future in checks:
                future.result()
