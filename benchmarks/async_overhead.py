"""Overhead of asyncio: each call of the asynchronous repository, compared with the synchronous one.

``python -m benchmarks.async_overhead`` runs on private, durable servers. The repositories share a database and take
turns. The figures are medians in microseconds. On SQLite, the asynchronous repository runs in threads; aiosqlite is
measured, too.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from sqlalchemy import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from benchmarks.listing_index import database
from vibeforge_sessions import AsyncSQLAlchemySessionRepository, SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_async_engine, create_engine, migrate
from vibeforge_sessions.testing.base import full_session

CALLS: Final = ("append_log", "get_session", "update_session", "find_sessions")
ROUNDS: Final = 400
WARM_UP: Final = 40
WAYS: Final = {
    "sqlite": ("threads", "sqlite+aiosqlite"),
    "postgresql": ("threads", "postgresql+psycopg", "postgresql+asyncpg"),
    "mariadb": ("threads", "mariadb+asyncmy"),
}


def sync_calls(repository: SQLAlchemySessionRepository) -> dict[str, Callable[[], Any]]:
    """Return the measured calls by name."""
    session = repository.create_session(full_session("sync"))

    def update() -> None:
        session.current_question_index += 1
        repository.update_session(session)

    return {
        "append_log": lambda: repository.append_log("log", "line"),
        "get_session": lambda: repository.get_session("sync"),
        "update_session": update,
        "find_sessions": lambda: repository.find_sessions(limit=10),
    }


async def async_calls(
    repository: AsyncSQLAlchemySessionRepository, name: str
) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Return the measured calls by name."""
    session = await repository.create_session(full_session(name))

    async def update() -> None:
        session.current_question_index += 1
        await repository.update_session(session)

    return {
        "append_log": lambda: repository.append_log("log", "line"),
        "get_session": lambda: repository.get_session(name),
        "update_session": update,
        "find_sessions": lambda: repository.find_sessions(limit=10),
    }


async def measure(kind: str, url: URL) -> dict[str, dict[str, float]]:
    """Return the median of each call for each kind of repository."""
    engine = create_engine(url)
    migrate.upgrade(engine)
    sync = SQLAlchemySessionRepository(engine)
    sync.create_session(session_id="log")
    ways: dict[str, Any] = {"sync": sync_calls(sync)}
    engines: list[AsyncEngine] = []
    threads = AsyncSQLAlchemySessionRepository(engine)
    for way in WAYS[kind]:
        if way == "threads":
            repository = threads
        else:
            engines.append(create_async_engine(url.set(drivername=way)))
            repository = AsyncSQLAlchemySessionRepository(engines[-1])
        ways[way] = await async_calls(repository, way.replace("+", "."))
    times: dict[str, dict[str, list[float]]] = {call: {way: [] for way in ways} for call in CALLS}
    for turn in range(ROUNDS + WARM_UP):
        for call in CALLS:
            for way, calls in ways.items():
                began = time.perf_counter()
                result = calls[call]()
                if way != "sync":
                    await result
                if turn >= WARM_UP:
                    times[call][way].append(time.perf_counter() - began)
    await threads.close()
    for each in engines:
        await each.dispose()
    engine.dispose()
    return {call: {way: statistics.median(taken) * 1e6 for way, taken in by.items()} for call, by in times.items()}


def main() -> None:
    """Print a table for each database."""
    for kind in WAYS:
        with database(kind) as engine:
            found = asyncio.run(measure(kind, make_url(engine.url)))
        print(f"\n{kind:16}" + "".join(f"{way:>24}" for way in found[CALLS[0]]))
        for call, by in found.items():
            first = by["sync"]
            print(f"{call:16}" + "".join(f"{taken:14.0f} (× {taken / first:4.2f})" for taken in by.values()))


if __name__ == "__main__":
    main()
