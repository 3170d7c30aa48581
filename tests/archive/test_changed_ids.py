"""Transfer and pruning of sessions, one of which has an id that was edited by hand to an invalid one."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.support.databases import Storage
from vibeforge_sessions import InMemorySessionRepository, SessionFilter, SQLAlchemySessionRepository
from vibeforge_sessions.archive import copy_sessions, export_sessions
from vibeforge_sessions.retention import prune


@pytest.fixture
def source(sqlite: Storage) -> SQLAlchemySessionRepository:
    engine = sqlite.new_engine()
    repository = SQLAlchemySessionRepository(engine)
    for session_id in ("one", "two", "three"):
        repository.create_session(session_id=session_id)
    with engine.begin() as connection:
        connection.execute(text("PRAGMA defer_foreign_keys = ON"))
        for table in ("vibeforge_sessions", "vibeforge_session_documents"):
            connection.execute(text(f"UPDATE {table} SET session_id = 'has space' WHERE session_id = 'two'"))
    return repository


def test_copy_reports_the_changed_id(source: SQLAlchemySessionRepository) -> None:
    report = copy_sessions(source, InMemorySessionRepository())
    assert (report.created, report.failed) == (2, 1)


def test_export_reports_the_changed_id(source: SQLAlchemySessionRepository, tmp_path: Path) -> None:
    report = export_sessions(source, tmp_path / "out.jsonl")
    assert (report.exported, report.failed) == (2, 1)


def test_prune_reports_the_changed_id(source: SQLAlchemySessionRepository) -> None:
    report = prune(source, SessionFilter(phases=["QUESTIONNAIRE"]), older_than=timedelta(microseconds=1))
    assert (report.phases, report.failed) == ({"QUESTIONNAIRE": 2}, 1)
