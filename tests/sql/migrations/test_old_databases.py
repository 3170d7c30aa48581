"""Databases of each past revision, with data, that are upgraded and then used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.data.make import EXPECTED, FOLDER, shape
from tests.support.migrations import HEAD
from vibeforge_sessions import SessionFilter, SQLAlchemySessionRepository, open_repository
from vibeforge_sessions.sql import check_schema, create_engine, migrate
from vibeforge_sessions.sql.admin import maintenance
from vibeforge_sessions.testing.base import stored

REVISIONS = [each.revision for each in migrate.history()]


@pytest.fixture(params=REVISIONS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a copy of the stored database."""
    path = tmp_path / "old.db"
    shutil.copyfile(FOLDER / f"{request.param}.db", path)
    return path


@pytest.fixture
def engine(old: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{old}")
    yield engine
    engine.dispose()


def test_stored_databases_are_one_per_revision() -> None:
    assert {path.stem for path in FOLDER.glob("*.db")} == set(REVISIONS)


def test_stored_database_has_revision_of_its_name(engine: Engine, request: pytest.FixtureRequest) -> None:
    revision = request.node.callspec.params["old"]
    assert migrate.current(engine) == revision
    assert migrate.status(engine).state == ("current" if revision == HEAD else "behind")


def test_upgrade_of_old_database_keeps_its_sessions(engine: Engine) -> None:
    migrate.upgrade(engine)
    check_schema(engine, exact=True)
    assert list(maintenance.verify_data(engine)) == []
    repository = SQLAlchemySessionRepository(engine)
    expected = json.loads(EXPECTED.read_text())
    assert [shape_of(repository, session_id) for session_id in repository.list_sessions()] == [
        comparable(session) for session in expected
    ]


def test_upgraded_old_database_accepts_all_operations(old: Path) -> None:
    with open_repository(f"sqlite:///{old}", migrate=True) as repository:
        session = stored(repository, "old-4")
        entry = repository.append_error("old-4", "t9", "it broke again")
        assert entry.position == len(session.error_history) + 1
        session.add_answer("new", "answer")
        session.add_log("a line")
        repository.update_session(session)
        assert repository.find_sessions(order="-updated_at", limit=1).items[0].session_id == "old-4"
        with_errors = repository.find_sessions(SessionFilter(has_errors=True)).items
        assert len(with_errors) == len(repository.list_sessions()) - 1
        again = stored(repository, "old-4")
        assert again.answers == session.answers
        assert len(again.error_history) == entry.position
        assert repository.delete_session("old-4")


def shape_of(repository: SQLAlchemySessionRepository, session_id: str) -> object:
    return comparable(json.loads(json.dumps(shape(stored(repository, session_id)))))


def comparable(session: dict[str, object]) -> str:
    """Return JSON text, in which 1 and 1.0 differ, and also different orders of keys."""
    return json.dumps({name: value for name, value in session.items() if name in _COMPARED_FIELDS})


_COMPARED_FIELDS = {
    "session_id",
    "phase",
    "created_at",
    "updated_at",
    "current_question_index",
    "answers",
    "concept",
    "completed_task_ids",
    "active_task_id",
    "logs",
    "error_history",
}
