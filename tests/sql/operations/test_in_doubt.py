"""Resolutions that begin while the transaction of the write is still open on the server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest
from sqlalchemy import Engine, text

from tests.support.servers.machine import wait_for
from vibeforge_sessions import SQLAlchemySessionRepository
from vibeforge_sessions.model import validation
from vibeforge_sessions.sql.dialects import database_dialect_of
from vibeforge_sessions.sql.operations.append import AppendEntry
from vibeforge_sessions.sql.operations.session_rows import LOGS
from vibeforge_sessions.sql.transactions.executor import Executor

LOCK_WAITS = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'",
    "mysql": "SELECT variable_value + 0 FROM information_schema.global_status "
    "WHERE variable_name = 'Innodb_row_lock_current_waits'",
}


@contextmanager
def in_transaction(engine: Engine) -> Iterator[Executor]:
    """Begin a transaction on a connection of its own, and commit it."""
    with closing(Executor(engine.connect(), database_dialect_of(engine.dialect))) as executor:
        executor.begin(write=True, single_statement=False)
        yield executor
        executor.commit()


@pytest.mark.parametrize("url", ["postgresql", "mariadb"], indirect=True)
def test_append_is_not_repeated_while_its_transaction_is_open(engine: Engine) -> None:
    repository = SQLAlchemySessionRepository(engine)
    repository.create_session(session_id="s")
    row = {"session_id": "s", "message": "once", "write_id": validation.new_write_id()}
    append = AppendEntry(LOGS, row, validation.utc_now(), needs_transaction=True)

    def resolve() -> int:
        with in_transaction(engine) as executor:
            return int(append.resolve(executor, may_still_arrive=False)[0])

    def is_waiting() -> bool:
        with engine.connect() as connection:
            return found.done() or bool(connection.scalar(text(LOCK_WAITS[engine.dialect.name])))

    with ThreadPoolExecutor(1) as thread:
        with in_transaction(engine) as executor:
            append.execute(executor)
            found = thread.submit(resolve)
            wait_for(is_waiting, 30, "the resolution's lock")
        assert found.result() == 1
    assert repository.list_logs("s") == ["once"]
