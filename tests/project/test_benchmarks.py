"""The benchmarks: equivalence of the floor and the repository, generated data, index use, and reports."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import clients, filling, ours, pruning, scale
from benchmarks.contender import DOCUMENTS, RECENT
from benchmarks.floor import Floor
from benchmarks.floor.postgresql import PostgreSQL
from benchmarks.floor.sqlite import SQLite
from benchmarks.ours import Ours
from benchmarks.plans import plans_of
from benchmarks.scale_calls import CALLS, Place
from tests.support.databases import Storage
from vibeforge_sessions import Session, SQLAlchemySessionRepository
from vibeforge_sessions.sql import create_engine, migrate
from vibeforge_sessions.testing.base import assert_same, stored


@pytest.fixture(params=["sqlite", "postgresql"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Floor, Ours]]:
    """Yield the floor and the repository's contender on one database."""
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


def test_floor_and_repository_do_the_same(pair: tuple[Floor, Ours]) -> None:
    floor, contender = pair
    repository = contender.repository
    assert isinstance(repository, SQLAlchemySessionRepository)

    def get() -> Session:
        session: Session = stored(repository, session_id)
        assert_same(floor.get(session_id), session)
        assert_same(floor.get(session_id, RECENT), repository.get_session(session_id, recent=RECENT) or Session())
        return session

    session_id = floor.prepare(25)
    session = get()
    assert (session.version, len(session.error_history), len(session.logs)) == (1, 25, 50)
    assert (session.answers, session.task_graph) == (DOCUMENTS["answers"], DOCUMENTS["task_graph"])

    calls = floor.calls()
    entry = calls["append"](session_id)
    session = get()
    assert entry == session.error_history[-1]
    assert session.error_history[-1].position == 26
    assert session.updated_at == session.error_history[-1].timestamp

    floor.hold(session_id)
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
    floor.draft("drafted")
    created = calls["create"]("drafted")
    assert isinstance(created, Session)
    assert_same(created, stored(repository, "drafted"))
    calls["delete"]("drafted")
    other = floor.prepare(0)
    page = calls["list_page"]()
    assert page == list(repository.find_sessions().items)
    calls["delete"](other)
    assert repository.list_sessions() == [session_id]


def test_measured_calls_work_on_prepared_data(pair: tuple[Floor, Ours]) -> None:
    _, contender = pair
    session_id = contender.prepare(30)
    contender.hold(session_id)
    contender.draft("drafted")
    contender.calls()["create"]("drafted")
    contender.calls()["delete"]("drafted")
    for name, call in contender.calls().items():
        if name not in {"create", "delete", "list_page", "walk"}:
            call(session_id)
    assert contender.count(session_id) == 32
    contender.fill(40)
    assert len(contender.repository.list_sessions()) == 40


# --- scale ---


FULL_SCANS = {
    "list_sessions",
    "find_sessions, 1,000 newest",  # all of them in this small database
    "statistics.count_phases",
    "statistics.count_ages, updated_at",
    "statistics.count_ages, created_at",
    "statistics.count_errors, of all time",
}
"""Calls that concern all sessions or all errors, and therefore read whole tables."""


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Yield a database that `benchmarks.scale` has filled with 400 sessions and one session with long histories."""
    storage: Storage = request.getfixturevalue(request.param)
    assert storage.new_url is not None
    url = storage.new_url()
    plans = " ".join(f"-c enable_{each}=off" for each in ("seqscan", "mergejoin", "hashjoin"))
    options = {"connect_args": {"options": plans}} if request.param == "postgresql" else {}
    engine = create_engine(url)
    filled = filling.fill(engine, 400, 4_000)
    assert filled["rows"] == 400 + 400 + 4_000 + 800 + 2 + 2 * filling.PROBED
    engine.dispose()
    place = Place(url, 400, **options)
    yield place
    place.close()


def test_filled_sessions_are_readable_and_complete(place: Place) -> None:
    sessions = [stored(place.repository, session_id) for session_id in place.repository.list_sessions()]
    assert len(sessions) == 401
    assert [session.session_id for session in sessions if session.session_id != filling.PROBE] == filling.session_ids(
        400
    )
    for index, session_id in enumerate(filling.session_ids(400)):
        session = stored(place.repository, session_id)
        assert len(session.error_history) == filling.error_count(index, 400, 4_000)
        assert all(entry.timestamp <= session.updated_at for entry in session.error_history)
    assert len(stored(place.repository, filling.PROBE).error_history) == filling.PROBED


def test_calls_use_indexes_except_full_scans(place: Place) -> None:
    """Compare the query plans; PostgreSQL's sequential scans are disabled, because it prefers them for small tables."""
    full_scans = {
        name for name, call in CALLS.items() if any(plan.whole for plan in plans_of(place.engine, call(place)))
    }
    assert full_scans <= FULL_SCANS
    assert "list_sessions" in full_scans


@pytest.mark.exhaustive
def test_scale_benchmark_reports_every_call(tmp_path: Path) -> None:
    flags = ["--database", "sqlite", "--sessions", "1000", "--errors", "2000", "--directory", str(tmp_path), "--quick"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale", *flags, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in (*CALLS, *scale.COMMANDS[:2]):
        assert f"| {name} |" in done.stdout or f"| `{name}` |" in done.stdout
    assert {path.name for path in tmp_path.rglob("*")} == {"out", "scale-sqlite.json", "scale-sqlite.md"}


def test_prune_benchmark_measures_concurrent_service() -> None:
    with clients.database("sqlite") as url:
        alone, during_prune, duration = pruning.measure(url, 0.0, sessions=20, seconds=0.2)
    assert alone
    assert during_prune
    assert duration > 0
