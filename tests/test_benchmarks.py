"""The floor of the benchmarks does what ours does: it would be none otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import ours
from benchmarks.contender import DOCUMENTS, RECENT
from benchmarks.floor import Floor
from benchmarks.floor.postgresql import PostgreSQL
from benchmarks.floor.sqlite import SQLite
from benchmarks.ours import Ours
from tests.databases import Storage
from vibeforge_sessions import Session, SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine, migrate
from vibeforge_sessions.testing.base import assert_same, stored


@pytest.fixture(params=["sqlite", "postgresql"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Floor, Ours]]:
    """The floor and ours on one database."""
    if request.param == "sqlite":
        engine = create_engine(f"sqlite:///{tmp_path / 'sessions.db'}")
        migrate.upgrade(engine)
        engine.dispose()
        both: tuple[Floor, ours.InDatabase] = SQLite(str(tmp_path)), ours.SQLite(str(tmp_path))
    else:
        storage: Storage = request.getfixturevalue("postgresql")
        assert storage.new_url is not None
        url = storage.new_url()
        both = PostgreSQL(url), ours.PostgreSQL(url)
    yield both
    for each in both:
        each.close()
    both[1].engine.dispose()


def test_the_floor_does_the_same(pair: tuple[Floor, Ours]) -> None:
    theirs, our = pair
    repository = our.repository
    assert isinstance(repository, SQLAlchemySessionRepository)

    def get() -> Session:
        session: Session = stored(repository, session_id)
        assert_same(theirs.get(session_id), session)
        assert_same(theirs.get(session_id, RECENT), repository.get_session(session_id, recent=RECENT) or Session())
        return session

    session_id = theirs.prepare(25)
    session = get()
    assert (session.version, len(session.error_history), len(session.logs)) == (1, 25, 50)
    assert (session.answers, session.task_graph) == (DOCUMENTS["answers"], DOCUMENTS["task_graph"])

    calls = theirs.calls()
    entry = calls["append"](session_id)
    session = get()
    assert entry == session.error_history[-1]
    assert session.error_history[-1].position == 26
    assert session.updated_at == session.error_history[-1].timestamp

    theirs.hold(session_id)
    for version, call in enumerate(("update_phase", "update_artifact", "update_phase_and_error"), 2):
        before = get()
        calls[call](session_id)
        session = get()
        assert session.version == version
        assert (session.phase == before.phase) is (call == "update_artifact")
        assert (session.concept == before.concept) is (call != "update_artifact")
        assert len(session.error_history) - len(before.error_history) == (call == "update_phase_and_error")

    for share, name in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        after = max(0, int(25 * share) - RECENT)
        assert calls[f"list_errors_{name}"](session_id) == repository.list_errors(session_id, after=after, limit=RECENT)
    theirs.draft("drafted")
    created = calls["create"]("drafted")
    assert isinstance(created, Session)
    assert_same(created, stored(repository, "drafted"))
    calls["delete"]("drafted")
    other = theirs.prepare(0)
    page = calls["list_page"]()
    assert page == list(repository.find_sessions().items)
    calls["delete"](other)
    assert repository.list_sessions() == [session_id]


def test_ours_is_measured_on_what_it_says(pair: tuple[Floor, Ours]) -> None:
    _, our = pair
    session_id = our.prepare(30)
    our.hold(session_id)
    our.draft("drafted")
    our.calls()["create"]("drafted")
    our.calls()["delete"]("drafted")
    for name, call in our.calls().items():
        if name not in {"create", "delete", "list_page", "walk"}:
            call(session_id)
    assert our.count(session_id) == 32
    our.fill(40)
    assert len(our.repository.list_sessions()) == 40
