"""Time limits of attempts, for servers that accept a connection and then do not answer.

Drivers have no such limit, or one for each packet. So a thread or the event loop closes the connection's socket, and
the driver reports the connection as lost.

An exception of a signal handler may end an attempt at any function entry, including the entry of `Limit.__exit__`. A
limit that remains then closes nothing: it refers to the pooled connection weakly, and only until the connection has
returned to the pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from sqlalchemy import Dialect, PoolProxiedConnection
from sqlalchemy.util import await_only

from vibeforge_sessions.sql.dialects import DatabaseDialect, database_dialect_of

_EVERY: Final = 0.1
"""Seconds between two checks by the thread."""
_GRACE: Final = 1.0
"""Seconds in which a driver on an event loop must notice that its connection was closed."""
_IDLE: Final = 100
"""Checks without a limit after which the thread ends."""

T = TypeVar("T")


class Limit(ABC):
    """A context manager that ends an attempt after a number of seconds."""

    __slots__ = ("__weakref__", "expired", "is_over", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.expired = False
        """Whether the limit has ended the attempt."""
        self.is_over = False
        """Whether the attempt is over, so that the limit must not expire any more.

        The attempt sets it by an assignment: unlike a call, that has no function entry at which it is interrupted.
        """

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def connecting(self, connect: Callable[..., T], *arguments: Any) -> T:
        """Call a function that takes a connection from the pool, which may open a new one; return its result."""
        return connect(*arguments)

    def watch(self, connection: PoolProxiedConnection) -> None:  # noqa: B027 (not all need it)
        """Limit the waits of the attempt on this pooled connection."""

    def ended(self, error: BaseException) -> bool:
        """Return whether the attempt raised this error because the limit expired."""
        return self.expired


class _None(Limit):
    """No limit: an embedded database always answers."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


class _Cutting(Limit):
    """Ends an attempt by closing its socket: a driver that is only cancelled may wait for the server again."""

    __slots__ = ("_database", "_pooled")

    def __init__(self, seconds: float, database: DatabaseDialect) -> None:
        super().__init__(seconds)
        self._database = database
        self._pooled: Callable[[], PoolProxiedConnection | None] = _no_connection

    def watch(self, connection: PoolProxiedConnection) -> None:
        self._pooled = weakref.ref(connection)

    def expire(self) -> bool:
        """Close the socket of the attempt's connection; return whether the attempt has one."""
        connection = None if self.is_over else self._connection()
        if connection is None:
            return False
        self.expired = True
        self._database.abort_connection(getattr(connection, "driver_connection", connection))
        return True

    def _connection(self) -> Any:
        """Return the attempt's connection; None before the checkout and after the return to the pool."""
        pooled = self._pooled()
        return None if pooled is None else pooled.dbapi_connection


class _OnTheLoop(_Cutting):
    __slots__ = ("_is_open", "_timeout", "_timer")

    def __enter__(self) -> Self:
        self._timeout = asyncio.timeout(None)
        await_only(self._timeout.__aenter__())
        self._is_open = True
        self._timer = _call_later(self.seconds, self._end)
        return self

    def _end(self) -> None:
        # without a connection, or if the driver has not noticed the closed socket, the task is cancelled
        if self.expire():
            self._timer = _call_later(_GRACE, self._cancel)
        else:
            self._cancel()

    def _cancel(self) -> None:
        if not self.is_over:
            self._timeout.reschedule(asyncio.get_running_loop().time())

    def ended(self, error: BaseException) -> bool:
        self._timer.cancel()
        if isinstance(error, asyncio.CancelledError):
            self.expired = self._is_timeout(error)
        elif self._timeout.when() is not None:
            with contextlib.suppress(RuntimeError):  # it has just expired
                self._timeout.reschedule(None)
        return self.expired

    def _is_timeout(self, error: BaseException) -> bool:
        """Return whether the limit has cancelled the task, and not another task; only asyncio knows."""
        self._is_open = False
        try:
            await_only(self._timeout.__aexit__(type(error), error, error.__traceback__))
        except TimeoutError:
            return True
        return False

    def __exit__(self, *_: object) -> None:
        self.is_over = True
        self._timer.cancel()
        if self._is_open:
            await_only(self._timeout.__aexit__(None, None, None))


class _InThreads(_Cutting):
    __slots__ = ("_new", "reference", "until")

    def __init__(self, seconds: float, database: DatabaseDialect) -> None:
        super().__init__(seconds, database)
        self.until = time.monotonic() + seconds
        self.reference = weakref.ref(self, _watchdog.forget)
        hash(self.reference)  # cached: the reference to a collected limit could not be hashed, and so not be discarded
        self._new: Any = None
        """The connection that is being opened for the attempt and is not yet in the pool."""

    def __enter__(self) -> Self:
        _watchdog.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over = True
        _watchdog.remove(self)

    def connecting(self, connect: Callable[..., T], *arguments: Any) -> T:
        context = contextvars.copy_context()  # its variables end with it, however the attempt ends
        context.run(_current.set, self)
        try:
            return context.run(connect, *arguments)
        finally:
            self._new = None

    def watch_new(self, connection: Any) -> None:
        """Limit the waits of the attempt on a driver's connection that is being opened."""
        self._new = connection

    def _connection(self) -> Any:
        return super()._connection() if self._new is None else self._new


class _Watchdog:
    """The thread that expires limits; a process has one as long as calls are made."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limits: set[weakref.ref[_InThreads]] = set()
        """The limits of running attempts: weak, since an interrupted attempt may not have removed its own."""
        self.forget = self._limits.discard
        self._thread: threading.Thread | None = None

    def add(self, limit: _InThreads) -> None:
        with self._lock:
            self._limits.add(limit.reference)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="vibeforge_sessions deadlines", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is shutting down
                    return
                self._thread = thread

    def remove(self, limit: _InThreads) -> None:
        with self._lock:  # after this the thread does not expire the limit: the connection may soon have another user
            self._limits.discard(limit.reference)

    def _run(self) -> None:
        idle = 0
        while True:
            time.sleep(_EVERY)
            with self._lock:
                self._expire()
                idle = 0 if self._limits else idle + 1
                if idle == _IDLE:
                    self._thread = None
                    return

    def _expire(self) -> None:  # a function of its own: a variable of the loop in _run would keep a limit alive
        now = time.monotonic()
        for reference in self._limits.copy():  # collected limits are discarded at any moment
            limit = reference()
            if limit is not None and limit.until <= now:
                limit.expire()


_watchdog = _Watchdog()
_current: Final[ContextVar[_InThreads | None]] = ContextVar("vibeforge_sessions_limit", default=None)


def _reset_after_fork() -> None:
    global _watchdog  # noqa: PLW0603 (a forked child has no such thread, and its lock may be locked for ever)
    _watchdog = _Watchdog()
    _current.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


def limits_of(dialect: Dialect) -> Callable[[float], Limit]:
    """Return the factory of time limits, by their seconds, for attempts on engines of a dialect."""
    database = database_dialect_of(dialect)
    if not database.is_server:
        return _None
    return functools.partial(_OnTheLoop if dialect.is_async else _InThreads, database=database)


def watch_new(connection: Any, _record: object) -> None:
    """Limit the waits of the current attempt, if there is one, on a connection that is being opened.

    It listens to the engine's "connect" event.
    """
    limit = _current.get()
    if limit is not None:
        limit.watch_new(connection)


def _no_connection() -> None:
    """Stand in for the weak reference to a connection."""


def _call_later(seconds: float, method: Callable[[], None]) -> asyncio.TimerHandle:
    """Schedule a limit's method on the event loop; it is not called if the limit was collected by then."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        if (referred := reference()) is not None:
            referred()

    return asyncio.get_running_loop().call_later(seconds, call)
