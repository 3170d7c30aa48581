"""The time limit of one attempt, also where a server has accepted the connection and then says nothing.

Drivers have no such limit, or one for each packet. On an event loop asyncio cancels the attempt; elsewhere a thread
shuts down the connection's socket, which the driver takes for a lost connection.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Final, Self

from sqlalchemy import Dialect
from sqlalchemy.util import await_only

from vibeforge_sessions.sql.databases import Database, database_of

_EVERY: Final = 0.1
"""How often the thread looks, in seconds."""
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

    def watch(self, driver: Any) -> None:  # noqa: B027 (not all need it)
        """Take this connection of the driver for the one that the attempt waits for."""

    def ended(self, error: BaseException) -> bool:  # noqa: ARG002 (not all need it)
        """Tell whether the attempt has raised this because its time was over."""
        return self.expired


class _None(Limit):
    """An embedded database says something always."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


class _OnTheLoop(Limit):
    __slots__ = ("_timeout",)

    def __enter__(self) -> Self:
        self._timeout = asyncio.timeout(self.seconds)
        await_only(self._timeout.__aenter__())
        return self

    def ended(self, error: BaseException) -> bool:
        if not self.expired and isinstance(error, asyncio.CancelledError):
            try:  # a cancellation may also be the task's own: only asyncio can tell
                await_only(self._timeout.__aexit__(type(error), error, error.__traceback__))
            except TimeoutError:
                self.expired = True
        return self.expired

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.expired and not isinstance(error, asyncio.CancelledError):  # otherwise it is over already
            await_only(self._timeout.__aexit__(kind, error, traceback))


class _InThreads(Limit):
    __slots__ = ("_database", "_driver", "until")

    def __init__(self, seconds: float, database: Database) -> None:
        super().__init__(seconds)
        self._database = database
        self._driver: Any = None

    def __enter__(self) -> Self:
        self.until = time.monotonic() + self.seconds
        _current.limit = self
        _watchdog.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.limit = None
        _watchdog.remove(self)

    def watch(self, driver: Any) -> None:
        self._driver = driver

    def expire(self) -> None:
        """Shut the socket down, again and again: the driver may be about to open another."""
        driver = self._driver
        if driver is not None:
            self.expired = True
            self._database.cut(driver)


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
_current: Final = threading.local()


def _begin_anew() -> None:
    global _watchdog  # noqa: PLW0603 (a forked child has no thread, and perhaps a lock that nobody will release)
    _watchdog = _Watchdog()
    _current.limit = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def limited(dialect: Dialect, seconds: float) -> Limit:
    """Return a limit for an attempt on an engine of this dialect."""
    database = database_of(dialect)
    if not database.is_server:
        return _None(seconds)
    return _OnTheLoop(seconds) if dialect.is_async else _InThreads(seconds, database)


def watch_new(driver: Any, _record: object) -> None:
    """Take a connection that is being made for the one that this thread's attempt waits for, if it is in one.

    A listener to the engine's "connect".
    """
    limit = getattr(_current, "limit", None)
    if limit is not None:
        limit.watch(driver)
