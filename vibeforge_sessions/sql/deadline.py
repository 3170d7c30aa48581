"""The time limit of one attempt, also where a server has accepted the connection and then says nothing.

Drivers have no such limit, or one for each packet. So the connection is cut, by a thread or by the event loop, and the
driver takes it for lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, Self

from sqlalchemy import Dialect
from sqlalchemy.util import await_only

from vibeforge_sessions.sql.databases import Database, database_of

_EVERY: Final = 0.1
"""How often the thread looks, in seconds."""
_GRACE: Final = 1.0
"""How long a driver has to notice on an event loop that its connection was cut, in seconds."""
_IDLE: Final = 100
"""After how many looks at nothing the thread ends."""


class Limit(ABC):
    """``with`` one, an attempt takes so many seconds at the most."""

    __slots__ = ("expired", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.expired = False
        """Whether it has ended the attempt."""

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def watch(self, connection: Any) -> None:  # noqa: B027 (not all need it)
        """Take this connection of the driver's own for the one that the attempt waits for."""

    def ended(self, error: BaseException) -> bool:  # noqa: ARG002 (not all need it)
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

    __slots__ = ("_connection", "_database")

    def __init__(self, seconds: float, database: Database) -> None:
        super().__init__(seconds)
        self._database = database
        self._connection: Any = None

    def __enter__(self) -> Self:
        _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.set(None)

    def watch(self, connection: Any) -> None:
        self._connection = connection

    def expire(self) -> bool:
        """Cut the connection, if there is one yet."""
        if self._connection is None:
            return False
        self.expired = True
        self._database.cut(self._connection)
        return True


class _OnTheLoop(_Cutting):
    __slots__ = ("_is_open", "_timeout", "_timer")

    def __enter__(self) -> Self:
        self._timeout = asyncio.timeout(None)
        await_only(self._timeout.__aenter__())
        self._is_open = True
        self._timer = asyncio.get_running_loop().call_later(self.seconds, self._end)
        return super().__enter__()

    def _end(self) -> None:
        # while there is no connection yet, or if the driver has not noticed, the attempt is cancelled
        grace = _GRACE if self.expire() else 0
        self._timeout.reschedule(asyncio.get_running_loop().time() + grace)

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
        super().__exit__()
        self._timer.cancel()
        if self._is_open:
            await_only(self._timeout.__aexit__(None, None, None))


class _InThreads(_Cutting):
    __slots__ = ("until",)

    def __enter__(self) -> Self:
        self.until = time.monotonic() + self.seconds
        _watchdog.add(self)
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        _watchdog.remove(self)


class _Watchdog:
    """The thread; there is one in a process, as long as there are calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limits: set[_InThreads] = set()
        self._thread: threading.Thread | None = None

    def add(self, limit: _InThreads) -> None:
        with self._lock:
            self._limits.add(limit)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="vibeforge_sessions deadlines", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is shutting down
                    return
                self._thread = thread

    def remove(self, limit: _InThreads) -> None:
        with self._lock:  # whoever is about to expire it has done so, or will not: the connection is another's soon
            self._limits.discard(limit)

    def _run(self) -> None:
        idle = 0
        while True:
            time.sleep(_EVERY)
            now = time.monotonic()
            with self._lock:
                for limit in self._limits:
                    if limit.until <= now:
                        limit.expire()
                idle = 0 if self._limits else idle + 1
                if idle == _IDLE:
                    self._thread = None
                    return


_watchdog = _Watchdog()
_current: Final[ContextVar[_Cutting | None]] = ContextVar("vibeforge_sessions_limit", default=None)


def _begin_anew() -> None:
    global _watchdog  # noqa: PLW0603 (a forked child has no thread, and perhaps a lock that nobody will release)
    _watchdog = _Watchdog()
    _current.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def limits_of(dialect: Dialect) -> Callable[[float], Limit]:
    """Return what makes a limit of so many seconds for an attempt on an engine of this dialect."""
    database = database_of(dialect)
    if not database.is_server:
        return _None
    return functools.partial(_OnTheLoop if dialect.is_async else _InThreads, database=database)


def watch_new(connection: Any, _record: object) -> None:
    """Take a connection that is being made for the one that the current attempt waits for, if there is an attempt.

    A listener to the engine's "connect".
    """
    limit = _current.get()
    if limit is not None:
        limit.watch(getattr(connection, "driver_connection", connection))
