"""History rows deleted outside the package. Operations that read them raise, and all others succeed."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from vibeforge_sessions import (
    AsyncSQLAlchemySessionRepository,
    CorruptSessionError,
    InMemorySessionRepository,
    SQLAlchemySessionRepository,
)
from vibeforge_sessions.archive import ArchiveWriter, copy_sessions, export_sessions, import_sessions

ID, OTHER = "s", "other"
COUNT = 5
LISTS = {"errors": "list_errors", "logs": "list_logs"}


def filled(engine: Engine) -> SQLAlchemySessionRepository:
    """Return a repository with two sessions."""
    repository = SQLAlchemySessionRepository(engine)
    for session_id in (ID, OTHER):
        repository.create_session(session_id=session_id)
        for number in range(COUNT):
            repository.append_error(session_id, f"t{number % 2}", f"error {number}")
            repository.append_log(session_id, f"log {number}")
    return repository


def delete_row(engine: Engine, history: str, position: int) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(f"DELETE FROM vibeforge_session_{history} WHERE session_id = '{ID}' AND position = {position}")
        )


def raises_corrupt(call: Callable[[], Any]) -> bool:
    """Return whether the call reports the session as corrupt, and check that the error names it."""
    found: CorruptSessionError | None = None
    try:
        call()
    except CorruptSessionError as error:
        found = error
    assert found is None or found.session_id == ID
    assert found is None or "the number of stored history entries differs from the count in its row" in str(found)
    return found is not None


@pytest.mark.parametrize("history", LISTS)
@pytest.mark.parametrize("position", [1, 3, COUNT], ids=["first", "middle", "last"])
def test_only_slices_with_missing_row_raise_corrupt(engine: Engine, history: str, position: int) -> None:
    repository = filled(engine)
    whole = {name: getattr(repository, LISTS[name])(ID) for name in LISTS}
    delete_row(engine, history, position)
    with engine.connect() as connection:
        joined = SQLAlchemySessionRepository(connection)
        for each in (repository, SQLAlchemySessionRepository(engine, fast_path=False), joined):
            for after in range(COUNT + 2):
                for limit in (1, 2, COUNT, 1_000):
                    sliced = getattr(each, LISTS[history])
                    missed = after < position <= after + limit
                    assert raises_corrupt(lambda: sliced(ID, after=after, limit=limit)) == missed  # noqa: B023
                    if not missed:
                        assert sliced(ID, after=after, limit=limit) == whole[history][after : after + limit]
            (intact,) = LISTS.keys() - {history}
            assert getattr(each, LISTS[intact])(ID) == whole[intact]
            assert len(getattr(each, LISTS[history])(OTHER)) == COUNT
            for recent in (None, 0, 1, 2, COUNT, 1_000):
                missed = recent is None or position > COUNT - recent
                assert raises_corrupt(lambda: each.get_session(ID, recent=recent)) == missed  # noqa: B023


def test_filtered_list_returns_remaining_entries(engine: Engine) -> None:
    repository = filled(engine)
    delete_row(engine, "errors", 3)
    assert [entry.position for entry in repository.list_errors(ID, task_id="t0")] == [1, 5]
    assert [entry.position for entry in repository.list_errors(ID, phase="QUESTIONNAIRE")] == [1, 2, 4, 5]


@pytest.mark.parametrize("history", LISTS)
def test_history_whose_length_differs_from_stored_count_raises_corrupt(engine: Engine, history: str) -> None:
    repository = filled(engine)
    for count, corrupt in ((COUNT + 1, True), (COUNT - 1, True), (COUNT, False)):
        with engine.begin() as connection:
            column = {"errors": "error_count", "logs": "log_count"}[history]
            connection.execute(text(f"UPDATE vibeforge_sessions SET {column} = {count} WHERE session_id = '{ID}'"))
        assert raises_corrupt(lambda: getattr(repository, LISTS[history])(ID)) is corrupt
    with engine.begin() as connection:
        connection.execute(text(f"DELETE FROM vibeforge_session_{history} WHERE session_id = '{ID}'"))
    assert raises_corrupt(lambda: getattr(repository, LISTS[history])(ID))


@pytest.mark.parametrize("history", LISTS)
def test_async_list_with_missing_row_raises_corrupt(engine: Engine, history: str) -> None:
    filled(engine)
    delete_row(engine, history, 3)

    async def listed() -> None:
        repository = AsyncSQLAlchemySessionRepository(engine)
        await getattr(repository, LISTS[history])(ID)

    assert raises_corrupt(lambda: asyncio.run(listed()))


@pytest.mark.parametrize("history", LISTS)
@pytest.mark.parametrize("position", [1, 3, COUNT], ids=["first", "middle", "last"])
def test_transfers_skip_and_report_session_with_missing_row(
    engine: Engine, history: str, position: int, tmp_path: Path
) -> None:
    repository = filled(engine)
    delete_row(engine, history, position)
    file, target = io.BytesIO(), InMemorySessionRepository()
    for report in (export_sessions(repository, file), copy_sessions(repository, target)):
        assert [problem.session_id for problem in report.problems] == [ID]
        reason = str(report.problems[0].reason)
        assert "the number of stored history entries differs from the count in its row" in reason
    assert target.list_sessions() == [OTHER]

    path = tmp_path / "archive"
    with ArchiveWriter(path) as writer:
        for session_id in (ID, OTHER):
            record = repository.get_record(session_id)
            assert record is not None
            assert raises_corrupt(lambda: writer.add(repository, record)) == (session_id == ID)  # noqa: B023
        assert [record.session_id for record in writer.commit()] == [OTHER]
    for archive in (path, io.BytesIO(file.getvalue())):
        target = InMemorySessionRepository()
        assert import_sessions(target, archive).created == 1
        assert target.list_errors(OTHER) == repository.list_errors(OTHER)
        assert target.list_logs(OTHER) == repository.list_logs(OTHER)
