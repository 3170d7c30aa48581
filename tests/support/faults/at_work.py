"""Concurrent clients, in threads of this process or in processes that can be killed."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any, Final, Self, cast

from sqlalchemy import URL, Engine

from tests.support.faults.clients import Client, Count, Counter
from tests.support.faults.history import Journal, Outcome
from tests.support.servers.machine import wait_for
from vibeforge_sessions import (
    AsyncSessionRepository,
    AsyncSQLAlchemySessionRepository,
    SessionRepository,
    SQLAlchemySessionRepository,
    open_repository,
)
from vibeforge_sessions.sql import create_async_engine, create_engine

PATIENCE: Final = 120.0
"""Seconds to wait for an event that must occur eventually."""
_ASYNC_DRIVERS: Final = {"postgresql": "postgresql+asyncpg", "mysql": "mysql+asyncmy"}


class LoopThreadRepository:
    """An asynchronous repository for threads: its calls run on an event loop in a thread of its own."""

    def __init__(self, new_repository: Callable[[], AsyncSessionRepository]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._repository = new_repository()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._repository, name)

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(method(*args, **kwargs), self._loop).result()

        return call

    def run(self, awaitable: Any) -> None:
        """Run an awaitable on the same loop, and wait for it."""
        asyncio.run_coroutine_threadsafe(awaitable, self._loop).result()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def repositories(url: URL, count: int, **options: Any) -> Iterator[tuple[list[SessionRepository], list[Engine]]]:
    """Provide repositories on one database and their engines; half are synchronous, half asynchronous."""
    engine = create_engine(url)
    driver = _ASYNC_DRIVERS.get(url.get_backend_name())
    async_engine = None if driver is None else create_async_engine(url.set(drivername=driver))
    loop = LoopThreadRepository(
        lambda: AsyncSQLAlchemySessionRepository(engine if async_engine is None else async_engine, **options)
    )
    synchronous: SessionRepository = SQLAlchemySessionRepository(engine, **options)
    yield (
        [synchronous] * (count // 2) + [cast(SessionRepository, loop)] * (count - count // 2),
        [engine] if async_engine is None else [engine, async_engine.sync_engine],
    )
    loop.close()
    if async_engine is not None:
        loop.run(async_engine.dispose())
    loop.stop()
    engine.dispose()


class Clients:
    """Several working clients, whose acknowledged calls are counted."""

    def __init__(self) -> None:
        self._counters: list[Counter] = []

    @property
    def acknowledged(self) -> int:
        return sum(counter.value for counter in self._counters)

    def wait_for(self, more: int) -> None:
        """Return when this many more calls have been answered."""
        until = self.acknowledged + more
        wait_for(lambda: self.acknowledged >= until or not self.are_working(), PATIENCE, f"{more} more answers")
        assert self.are_working(), "a client has ended"

    def are_working(self) -> bool:
        raise NotImplementedError


class Threads(Clients):
    """Clients in threads of this process, one for each repository."""

    def __init__(self, repositories: Sequence[SessionRepository], session_ids: Sequence[str], folder: Path) -> None:
        super().__init__()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        for number, repository in enumerate(repositories):
            journal, counter = Journal(folder, f"c{number}"), Count()
            client = Client(repository, journal, session_ids, counter)
            self._counters.append(counter)
            self._threads.append(threading.Thread(target=self._work, args=(client, journal), daemon=True))

    def _work(self, client: Client, journal: Journal) -> None:
        while not self._stopping.is_set():
            client.act()
        journal.close()

    def are_working(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a call has not ended"


@functools.cache
def _context() -> ForkServerContext:
    """Return a context that starts processes with all modules imported and without threads of this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "vibeforge_sessions.sql"])
    return context


class Processes(Clients):
    """Clients in processes, each with its own repository; a process can be killed and another one started."""

    def __init__(self, url: str, session_ids: Sequence[str], folder: Path, count: int) -> None:
        super().__init__()
        self._arguments = (url, session_ids, folder)
        self._stopping = _context().Event()
        self._count = count
        self._running: list[ForkServerProcess] = []

    def are_working(self) -> bool:
        return all(process.is_alive() for process in self._running)

    def start(self) -> None:
        """Start one more process."""
        counter = RawValue("q", 0)  # without a lock, because a killed process would keep it
        name = f"p{len(self._counters)}"
        self._counters.append(cast(Counter, counter))
        process = _context().Process(target=_work, args=(*self._arguments, name, counter, self._stopping), daemon=True)
        process.start()
        self._running.append(process)

    def kill(self, index: int) -> None:
        """Kill a running process at whatever it is doing."""
        process = self._running.pop(index)
        process.kill()
        process.join()

    def __enter__(self) -> Self:
        for _ in range(self._count):
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for process in self._running:
            process.join(PATIENCE)
            assert process.exitcode == 0, "a client has failed, or a call has not ended"


def _work(
    url: str, session_ids: Sequence[str], folder: Path, name: str, counter: Counter, stopping: threading.Event
) -> None:
    journal = Journal(folder, name)
    with open_repository(url) as repository:
        client = Client(repository, journal, session_ids, counter)
        while not stopping.is_set():
            client.act()
    journal.close()


@contextmanager
def last_reads(repository: SessionRepository, session_ids: Sequence[str], folder: Path) -> Iterator[None]:
    """Read every session once more at the end of the block, when no client writes any more."""
    yield
    journal = Journal(folder, "last")
    client = Client(repository, journal, session_ids, Count())
    for session_id in session_ids:
        for call in (client.get, client.list_errors, client.list_logs):
            wait_for(lambda: call(session_id).outcome is not Outcome.NOT_DONE, PATIENCE, "the database to answer")  # noqa: B023
    client.find("")
    journal.close()
