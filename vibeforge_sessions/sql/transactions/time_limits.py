"""The time limit of one attempt, also where a server has accepted the connection and then says nothing.

Drivers have no such limit, or one for each packet. So the connection is cut, by a thread or by the event loop, and the
driver takes it for lost.

An exception of a signal handler may end an attempt at any function entry, also at the one of `Limit.__exit__`. A limit
that stays behind then cuts nothing: it refers to the pooled connection only weakly, and only until that is given back.
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
"""How often the thread looks, in seconds."""
_GRACE: Final = 1.0
"""How long a driver has to notice on an event loop that its connection was cut, in seconds."""
_IDLE: Final = 100
"""After how many looks at nothing the thread ends."""

T = TypeVar("T")


class Limit(ABC):
    """``with`` one, an attempt takes so many seconds at the most."""

    __slots__ = ("__weakref__", "expired", "is_over", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.expired = False
        """Whether it has ended the attempt."""
        self.is_over = False
        """Whether the attempt is over, so that the limit must not expire any more.

        The attempt sets this itself: an assignment, unlike a call, is not interrupted.
        """

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def connecting(self, connect: Callable[..., T], *arguments: Any) -> T:
        """Return what a function returns that takes a connection from the pool, which may make a new one."""
        return connect(*arguments)

    def watch(self, connection: PoolProxiedConnection) -> None:  # noqa: B027 (not all need it)
        """Take this pooled connection for the one that the attempt waits for."""

    def ended(self, error: BaseException) -> bool:
        """Tell whether the attempt has raised this because its time was over."""
        return self.expired


class _None(Limit):
    """An embedded database says something always."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


class _Cutting(Limit):
    """Ends the attempt by cutting its connection: a driver that is cancelled may wait for the server once more."""

    __slots__ = ("_database", "_pooled")

    def __init__(self, seconds: float, database: DatabaseDialect) -> None:
        super().__init__(seconds)
        self._database = database
        self._pooled: Callable[[], PoolProxiedConnection | None] = _no_connection

    def watch(self, connection: PoolProxiedConnection) -> None:
        self._pooled = weakref.ref(connection)

    def expire(self) -> bool:
        """Cut the connection, if the attempt has one."""
        connection = None if self.is_over else self._connection()
        if connection is None:
            return False
        self.expired = True
        self._database.abort_connection(getattr(connection, "driver_connection", connection))
        return True

    def _connection(self) -> Any:
        """Return the connection that the attempt has now: None before it has got one, and once it is given back."""
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
        # while there is no connection yet, or if the driver has not noticed, the attempt is cancelled
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
            with contextlib.suppress(RuntimeError):  # it has fired just now
                self._timeout.reschedule(None)
        return self.expired

    def _is_timeout(self, error: BaseException) -> bool:
        """Tell whether the cancellation is ours and not the task's own, which only asyncio can."""
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
        hash(self.reference)  # remembered: a reference to a limit that is gone has no hash to be discarded by
        self._new: Any = None
        """The connection that is being made for the attempt, which the pool has not got yet."""

    def __enter__(self) -> Self:
        _watchdog.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over = True
        _watchdog.remove(self)

    def connecting(self, connect: Callable[..., T], *arguments: Any) -> T:
        context = contextvars.copy_context()  # what is set in it ends with it, however the attempt ends
        context.run(_current.set, self)
        try:
            return context.run(connect, *arguments)
        finally:
            self._new = None

    def watch_new(self, connection: Any) -> None:
        """Take a driver's connection that is being made for the one that the attempt waits for."""
        self._new = connection

    def _connection(self) -> Any:
        return super()._connection() if self._new is None else self._new


class _Watchdog:
    """The thread; there is one in a process, as long as there are calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limits: set[weakref.ref[_InThreads]] = set()
        """Those of attempts that are made: one that was interrupted may not have removed its own."""
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
        with self._lock:  # whoever is about to expire it has done so, or will not: the connection is another's soon
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

    def _expire(self) -> None:  # apart: a variable of the thread's loop would keep a limit
        now = time.monotonic()
        for reference in self._limits.copy():  # limits that are no more are discarded at any moment
            limit = reference()
            if limit is not None and limit.until <= now:
                limit.expire()


_watchdog = _Watchdog()
_current: Final[ContextVar[_InThreads | None]] = ContextVar("vibeforge_sessions_limit", default=None)


def _begin_anew() -> None:
    global _watchdog  # noqa: PLW0603 (a forked child has no thread, and perhaps a lock that nobody will release)
    _watchdog = _Watchdog()
    _current.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def limits_of(dialect: Dialect) -> Callable[[float], Limit]:
    """Return what makes a limit of so many seconds for an attempt on an engine of this dialect."""
    database = database_dialect_of(dialect)
    if not database.is_server:
        return _None
    return functools.partial(_OnTheLoop if dialect.is_async else _InThreads, database=database)


def watch_new(connection: Any, _record: object) -> None:
    """Take a connection that is being made for the one that the current attempt waits for, if there is an attempt.

    A listener to the engine's "connect".
    """
    limit = _current.get()
    if limit is not None:
        limit.watch_new(connection)


def _no_connection() -> None:
    """Stand in for the reference to a connection."""


def _call_later(seconds: float, method: Callable[[], None]) -> asyncio.TimerHandle:
    """Have the event loop call a limit's method, unless the limit is gone by then."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        if (referred := reference()) is not None:
            referred()

    return asyncio.get_running_loop().call_later(seconds, call)
