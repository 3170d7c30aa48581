"""Time limits that remain active after an interruption. They never cut a connection that has another user."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from typing import NoReturn

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.util import greenlet_spawn

from tests.support.databases import Storage
from vibeforge_sessions.sql import create_async_engine
from vibeforge_sessions.sql.transactions import time_limits
from vibeforge_sessions.sql.transactions.time_limits import limits_of


@pytest.fixture(params=["postgresql", "mariadb"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    storage: Storage = request.getfixturevalue(request.param)
    engine = storage.new_engine()
    yield engine
    engine.dispose()


def is_usable(engine: Engine) -> bool:
    with engine.connect() as connection:
        return bool(connection.scalar(text("SELECT 1")))


def test_expired_limit_cuts_its_connection(engine: Engine) -> None:
    pooled = engine.raw_connection()
    with limits_of(engine.dialect)(0) as limit:
        limit.watch(pooled)
        time.sleep(0.3)
        assert limit.expired
    pooled.invalidate()


def test_expired_limit_does_not_cut_connection_returned_to_pool(engine: Engine) -> None:
    pooled = engine.raw_connection()
    with limits_of(engine.dialect)(0) as limit:
        limit.watch(pooled)
        pooled.close()
        time.sleep(0.3)
        assert not limit.expired
        assert is_usable(engine)


def test_abandoned_connection_with_limit_returns_to_pool(engine: Engine) -> None:
    with limits_of(engine.dialect)(30) as limit:
        limit.watch(engine.raw_connection())
        gc.collect()
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_ended_limit_does_not_cut_connection(engine: Engine) -> None:
    pooled = engine.raw_connection()
    with limits_of(engine.dialect)(0) as limit:
        limit.is_over = True
        limit.watch(pooled)
        time.sleep(0.3)
    assert not limit.expired
    pooled.close()
    assert is_usable(engine)


def test_ended_limit_is_removed_from_watchdog(engine: Engine) -> None:
    limit = limits_of(engine.dialect)(30).__enter__()
    limit.is_over = True  # an interrupted attempt sets this, too
    assert len(time_limits._watchdog._limits) == 1
    time.sleep(0.3)  # lets the watchdog's thread check the limit
    assert len(time_limits._watchdog._limits) == 0


def test_connection_opened_after_failed_attempt_is_not_limited(engine: Engine) -> None:
    def fail() -> NoReturn:
        assert time_limits._current.get() is limit
        raise KeyboardInterrupt

    with limits_of(engine.dialect)(0) as limit:
        with pytest.raises(KeyboardInterrupt):
            limit.connecting(fail)
        time.sleep(0.3)
        assert time_limits._current.get() is None
        assert is_usable(engine)
        assert not limit.expired


@pytest.mark.parametrize("is_kept", [True, False], ids=["kept", "dropped"])
def test_abandoned_limit_on_event_loop_does_not_cancel_task(postgresql: Storage, is_kept: bool) -> None:
    async def work() -> None:
        engine = create_async_engine(postgresql.url_with("postgresql+psycopg"))
        limit = limits_of(engine.dialect)(0.05)
        await greenlet_spawn(limit.__enter__)
        limit.is_over = is_kept
        kept = limit if is_kept else None
        del limit
        await asyncio.sleep(0.2)
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()
        assert kept is None or not kept.expired
        await engine.dispose()

    asyncio.run(work())
