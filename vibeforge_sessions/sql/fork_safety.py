"""Fork safety: a child process opens its own connections, and neither uses nor closes those of its parent.

If two processes use one connection, each may read the server's responses to the other. SQLite adds another danger,
because its file locks belong to one process. In a child that has inherited an open file, SQLite relies on locks that
the operating system has not granted to the child. Another process may then delete the write-ahead log to which the
child writes. So, before a fork, this module waits for the package's calls on SQLite and closes the idle connections. If
a connection to a file is still open at the fork, the child cannot use that file.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import Any, Final
from weakref import WeakSet

from sqlalchemy import Connection, Engine, Pool, event
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from vibeforge_sessions.errors import StorageError
from vibeforge_sessions.repository.fork_locks import acquire_until_fork, fork_lock

_PROCESS_KEY: Final = "vibeforge_sessions_process"
"""Key in the `info` of a connection: the id of the process that opened it."""
_FILE_KEY: Final = "vibeforge_sessions_file"
"""Key in the `info` of a SQLite connection: its file, empty for a database in memory."""
_POLL: Final = 0.001
_MAX_WAIT: Final = 5.0
"""Seconds that a fork waits for calls on SQLite in other threads."""

_initializing: Final = fork_lock()
_engines: Final[WeakSet[Engine]] = WeakSet()
_records: Final[WeakSet[ConnectionPoolEntry]] = WeakSet()
_inherited: Final[list[object]] = []
"""The parent's pools and connections, kept because a finalizer could send data or roll back a transaction."""
_checked_out: Final[WeakSet[PoolProxiedConnection]] = WeakSet()
"""Connections that the parent used at the fork."""
rejected_files: Final[set[str]] = set()
"""SQLite files to which the parent had a connection open at the fork."""


def track(engine: Engine) -> None:
    """Make child processes open their own connections of an engine.

    Also make sure that only one thread initializes the dialect when several threads use a new engine at once.
    SQLAlchemy (2.1.9, ``event/attr.py``) creates the lock for the first connection without synchronization. Two threads
    can each create a lock, and the second then uses a half-initialized dialect (seen once in 5,000 tests: ``no
    attribute 'default_isolation_level'``). This function creates the lock earlier, without a connection.
    """
    with _initializing:
        _initialization_lock(engine.pool)
    _engines.add(engine)


def check_joined(connection: Connection) -> None:
    """Check that this process opened a caller's connection, without using the connection.

    :raises StorageError: the connection was inherited in a fork.
    """
    if connection.closed:
        return
    pooled = connection._dbapi_connection  # noqa: SLF001 (the property `connection` would open a new connection)
    process, is_usable = os.getpid(), not connection.invalidated
    if pooled in _checked_out or (
        is_usable and connection.info.setdefault(_PROCESS_KEY, process) not in {process, None}
    ):
        raise StorageError(
            f"this connection was opened by another process, and was open when process {process} was forked: "
            "open a new connection or orm.Session in this process, and call engine.dispose(close=False) first if "
            "the engine has no repository"
        )
    if is_usable:
        check_file(connection.info)


def check_file(info: dict[Any, Any]) -> None:
    """Check that a SQLite connection's file can be used in this process.

    :raises StorageError: the parent had an open connection to the file at the fork.
    """
    if info.get(_FILE_KEY) in rejected_files:
        raise StorageError(
            f"process {os.getpid()} was forked while a connection to its SQLite file was in use, and SQLite cannot use "
            "the file safely in such a process: end transactions before the fork, or use the start method spawn"
        )


_calls: Final[dict[object, int]] = {}
"""Running calls on SQLite, each with the id of its thread."""
forks: Final[list[int]] = []
"""The ids of the threads that are about to fork."""


def calls_of(engine: Engine) -> dict[object, int] | None:
    """Return the dictionary in which a call on an engine registers itself; None if forks do not wait for such calls.

    A call registers itself with its thread, waits for forks if there are any (`wait_for_forks`), and removes itself at
    its end.
    """
    # the calls of an event loop run in the thread that forks, which therefore cannot wait for them
    return None if engine.dialect.name != "sqlite" or engine.dialect.is_async else _calls


def wait_for_forks(call: object) -> None:
    """Wait until no thread is about to fork. A call within another call of the same thread does not wait."""
    thread = _calls[call]
    while forks and list(_calls.values()).count(thread) == 1:
        del _calls[call]
        time.sleep(_POLL)
        _calls[call] = thread  # before the next check for forks, so that a fork that begins later sees the call


def _wait_for_calls() -> None:
    thread = threading.get_ident()
    forks.append(thread)
    until = time.monotonic() + _MAX_WAIT
    while any(other != thread for other in list(_calls.values())) and time.monotonic() < until:
        time.sleep(_POLL)


def _end_fork() -> None:
    forks.remove(threading.get_ident())


@event.listens_for(Pool, "connect")
def _record_origin(connection: Any, record: ConnectionPoolEntry) -> None:
    """Record the process that opened a new connection, and the file of a SQLite connection."""
    _records.add(record)
    if hasattr(type(record.driver_connection), "total_changes"):  # only SQLite's drivers have it
        with contextlib.closing(connection.cursor()) as cursor:
            cursor.execute("PRAGMA database_list")
            path = next((row[2] for row in cursor.fetchall() if row[1] == "main"), "")
        record.info[_FILE_KEY] = os.path.realpath(path) if path else ""
    # a fork copies an in-memory database, and the child may use the copy
    record.info[_PROCESS_KEY] = None if record.info.get(_FILE_KEY) == "" else os.getpid()


def _open_records(pool: Pool) -> list[ConnectionPoolEntry]:
    """Return the entries of a pool that have a connection."""
    return [
        record
        for record in list(_records)
        if record.dbapi_connection is not None and getattr(record, "_ConnectionRecord__pool", None) is pool
    ]


def _initialization_lock(pool: Pool) -> threading.Lock | None:
    """Return the lock that SQLAlchemy holds while the first connection of a pool initializes the dialect."""
    make_mutex = getattr(pool.dispatch.connect, "_get_exec_once_mutex", None)
    mutex = None if make_mutex is None else make_mutex()
    # an asynchronous engine has a lock of another type
    return mutex if isinstance(mutex, type(threading.Lock())) else None


def _before_fork() -> None:
    """Close idle SQLite connections, and wait until no dialect is being initialized."""
    _wait_for_calls()
    pools = {engine.pool for engine in list(_engines)}
    acquire_until_fork(*filter(None, map(_initialization_lock, pools)))
    for record in (record for pool in pools for record in _open_records(pool)):
        if record.info.get(_FILE_KEY) and not record.in_use:
            driver: Any = record.driver_connection
            record.invalidate()
            if hasattr(driver, "stop"):  # aiosqlite closes the connection in a separate thread
                getattr(driver, "_thread", driver).join(_MAX_WAIT)


def _after_in_child() -> None:
    """Replace the pools without touching their connections."""
    forks.clear()
    _calls.clear()  # the threads of these calls do not exist in the child
    replaced: set[Pool] = set()
    for engine in list(_engines):
        pool = engine.pool  # engines made by execution_options share one pool
        if pool in replaced:
            continue
        records = _open_records(pool)
        if any(record.info.get(_FILE_KEY) == "" for record in records):
            continue  # a database in memory: the child has its own copy
        _inherited.append(pool)
        for record in records:
            _abandon(record)
        with contextlib.suppress(Exception):  # raised by a listener of the caller: continue with the other engines
            engine.dispose(close=False)
        replaced.add(engine.pool)
        _initialization_lock(engine.pool)  # create the lock before threads can compete for it


def _abandon(record: Any) -> None:
    """Keep an inherited connection from being used or finalized."""
    _inherited.append(record)
    with contextlib.suppress(ImportError):  # leak a reference: `_inherited` is finalized at exit
        import ctypes  # noqa: PLC0415 (only a child process needs it)

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(record.dbapi_connection))
    if record.info.get(_FILE_KEY):
        rejected_files.add(record.info[_FILE_KEY])
    pooled = None if record.fairy_ref is None else record.fairy_ref()
    record.fairy_ref = None  # otherwise garbage collection would roll back and close the connection
    if pooled is not None:
        _inherited.append(pooled)
        _checked_out.add(pooled)
        pooled.dbapi_connection = None  # then the caller's rollback and close send nothing


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_end_fork, after_in_child=_after_in_child)
