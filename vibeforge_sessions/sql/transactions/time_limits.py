"""Time limits of attempts, for servers that accept a connection and then do not answer.

Drivers have no time limit for an attempt, or only one for each packet. So a thread or the event loop closes the
connection's socket when the time is over, and the driver reports the connection as lost.

An exception from a signal handler may end an attempt at any function entry, including the entry of `Limit.__exit__`,
and thus leave a limit behind. Such a limit closes nothing, because it refers to the pooled connection only weakly, and
finds no driver connection in it after its return to the pool.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final, Self, TypeVar

from sqlalchemy import Dialect, PoolProxiedConnection
from sqlalchemy.util import await_only

from vibeforge_sessions.sql.dialects import database_dialect_of
from vibeforge_sessions.sql.dialects.base import DatabaseDialect
from vibeforge_sessions.sql.transactions.executor import Executor

_EVERY: Final = 0.1
"""Seconds between two checks by the thread."""
_GRACE: Final = 1.0
"""Seconds in which a driver on an event loop must notice that its connection was closed."""
_IDLE: Final = 100
"""Number of successive checks without any limit after which the thread ends."""

ExecutorT = TypeVar("ExecutorT", bound=Executor)


class Limit:
    """A context manager that ends an attempt after a number of seconds, by closing its socket.

    Canceling the task would not be enough, because a driver may then wait for the server again. This base class never
    expires; it is used for embedded databases, which always answer.
    """

    __slots__ = ("__weakref__", "_database", "connection", "expired", "is_over", "until")

    def __init__(self, seconds: float, database: DatabaseDialect) -> None:
        self.until = time.monotonic() + seconds
        self.expired = False
        """Whether the limit has ended the attempt."""
        self.is_over = False
        """Whether the attempt is over, so that the limit must not expire any more.

        The attempt sets this attribute by an assignment. Unlike a call, an assignment has no function entry, where an
        exception from a signal handler could prevent it.
        """
        self._database = database
        self.connection: Callable[[], Any] = _no_connection
        """Returns the attempt's connection; None before the checkout and after the return to the pool."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over = True

    def connecting(self, connect: Callable[..., ExecutorT], *arguments: Any) -> ExecutorT:
        """Call a function that takes a connection from the pool, or lets the pool open one; limit its waits."""
        executor = connect(*arguments)
        self.watch(executor.pooled)
        return executor

    def watch(self, connection: PoolProxiedConnection) -> None:
        """Limit the waits of the attempt on this pooled connection."""
        reference = weakref.ref(connection)
        self.connection = lambda: getattr(reference(), "dbapi_connection", None)

    def expire(self) -> bool:
        """Close the socket of the attempt's connection; return whether the attempt has one."""
        connection = None if self.is_over else self.connection()
        if connection is None:
            return False
        self.expired = True
        self._database.abort_connection(getattr(connection, "driver_connection", connection))
        return True

    def ended(self, error: BaseException) -> bool:
        """Return whether the attempt raised this error because the limit expired."""
        return self.expired


class _OnTheLoop(Limit):
    """Closes the socket by a timer of the event loop.

    The task is canceled if it has no connection yet, or if the driver does not notice the closed socket.
    """

    __slots__ = ("_is_open", "_timeout", "_timer")

    def __enter__(self) -> Self:
        self._timeout = asyncio.timeout(None)
        await_only(self._timeout.__aenter__())
        self._is_open = True
        self._timer = _call_later(self.until - time.monotonic(), self._end)
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over = True
        self._close(None)

    def _end(self) -> None:
        if self.expire():
            self._timer = _call_later(_GRACE, self._cancel)
        else:
            self._cancel()

    def _cancel(self) -> None:
        if not self.is_over:
            self._timeout.reschedule(asyncio.get_running_loop().time())

    def ended(self, error: BaseException) -> bool:
        is_timeout = self._close(error)
        if isinstance(error, asyncio.CancelledError):
            self.expired = is_timeout
        return self.expired

    def _close(self, error: BaseException | None) -> bool:
        """End the asyncio timeout; return whether the timeout, and not another task, has canceled this task."""
        self._timer.cancel()
        is_open, self._is_open = self._is_open, False
        try:
            if is_open:
                await_only(self._timeout.__aexit__(type(error), error, None))  # type: ignore[arg-type]
        except TimeoutError:
            return True
        return False


class _InThreads(Limit):
    """Closes the socket from another thread."""

    __slots__ = ()

    def __enter__(self) -> Self:
        _watchdog.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over = True
        _watchdog.remove(self)

    def connecting(self, connect: Callable[..., ExecutorT], *arguments: Any) -> ExecutorT:
        context = contextvars.copy_context()  # it is discarded with its variable, even after an interruption
        context.run(_current.set, self)
        try:
            return context.run(super().connecting, connect, *arguments)
        except BaseException:
            self.connection = _no_connection  # the connection may have been opened without reaching the pool
            raise


class _Watchdog:
    """The thread that expires limits. A process has this thread only while calls are made."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limits: set[Limit] = set()
        self._thread: threading.Thread | None = None

    def add(self, limit: Limit) -> None:
        with self._lock:
            self._limits.add(limit)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="vibeforge_sessions deadlines", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is shutting down
                    return
                self._thread = thread

    def remove(self, limit: Limit) -> None:
        with self._lock:  # from now on the limit cannot expire: the connection may soon have another user
            self._limits.discard(limit)

    def _run(self) -> None:
        idle = 0
        while True:
            time.sleep(_EVERY)
            with self._lock:
                self.check()
                idle = 0 if self._limits else idle + 1
                if idle == _IDLE:
                    self._thread = None
                    return

    def check(self) -> None:
        """Expire the limits whose time is over. Remove limits that interrupted attempts have left behind."""
        now = time.monotonic()
        for limit in self._limits:
            if limit.until <= now:
                limit.expire()
        self._limits = {limit for limit in self._limits if not limit.is_over}


_watchdog = _Watchdog()
_current: Final[ContextVar[_InThreads | None]] = ContextVar("vibeforge_sessions_limit", default=None)


def _reset_after_fork() -> None:
    global _watchdog  # noqa: PLW0603 (a forked child has no such thread, and its lock may be locked forever)
    _watchdog = _Watchdog()
    _current.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


def limits_of(dialect: Dialect) -> Callable[[float], Limit]:
    """Return a function that makes a limit from a number of seconds, for attempts on engines of this dialect."""
    database = database_dialect_of(dialect)
    kind = _OnTheLoop if dialect.is_async else _InThreads
    return functools.partial(kind if database.is_server else Limit, database=database)


def watch_new(connection: Any, _record: object) -> None:
    """Limit the waits of the current attempt, if there is one, on a connection that is being opened.

    This function is a listener to the engine's "connect" event.
    """
    limit = _current.get()
    if limit is not None:
        limit.connection = lambda: connection


def _no_connection() -> None:
    """Return None, while an attempt has no connection."""


def _call_later(seconds: float, method: Callable[[], None]) -> asyncio.TimerHandle:
    """Schedule a limit's method on the event loop; it is not called if the limit has been garbage-collected."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        if (referred := reference()) is not None:
            referred()

    return asyncio.get_running_loop().call_later(seconds, call)
