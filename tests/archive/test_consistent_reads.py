"""While sessions are read somebody writes to them: each is moved as of one moment, or left out and told."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.archives import LONG_AGO, change, exported, histories, imported, record_of
from tests.support.databases import Storage
from vibeforge_sessions import (
    ErrorEntry,
    InMemorySessionRepository,
    Session,
    SessionRepository,
    SQLAlchemySessionRepository,
)
from vibeforge_sessions.archive import Result, copy_sessions, export_sessions
from vibeforge_sessions.archive.bundle import _ATTEMPTS
from vibeforge_sessions.testing import NewRepository

Touch = Callable[[SessionRepository], object]


def old() -> Session:
    return Session(session_id="s", created_at=LONG_AGO, answers={"life": "old"}, logs=["old"] * 100)


def new() -> Session:
    return Session(session_id="s", created_at=LONG_AGO, answers={"life": "new"}, logs=["new"] * 150)


def anew(repository: SessionRepository) -> None:
    repository.delete_session("s")
    repository.create_session(new())


def anew_as_a_copy(repository: SessionRepository) -> None:
    """Another life of the same version, times and length: only the write id is another."""
    other = InMemorySessionRepository()
    session = new()
    session.logs = session.logs[:100]
    other.create_session(session)
    record, before = record_of(other, "s"), record_of(repository, "s")
    change(other, "s", updated_at=before.updated_at, version=before.version)
    repository.restore_record(record_of(other, "s"), *histories(other, "s"), replacing=before)
    assert record.counts == before.counts


def while_reading(repository: SessionRepository, touch: Touch, *, times: int, after: int = 1) -> SessionRepository:
    """Have the session touched when its logs are read, each time anew."""
    honest = repository.list_logs
    calls = 0

    def list_logs(session_id: str, **asked: Any) -> list[str]:
        nonlocal calls
        calls += 1
        if after <= calls < after + times:
            touch(repository)
        return honest(session_id, **asked)

    repository.list_logs = list_logs  # type: ignore[method-assign]
    return repository


def life_of(archive: bytes) -> tuple[str, set[str], int]:
    """Return what an archive's only session says it is: in its answers, in its logs, and their number."""
    lines = [json.loads(line) for line in archive.splitlines()]
    (header,) = [line for line in lines if line["kind"] == "session"]
    logs = [entry for line in lines if line["kind"] == "logs" for entry in line["entries"]]
    assert header["logs"] == len(logs)
    return header["documents"]["answers"]["life"], {log.rsplit(" ", 1)[-1] for log in logs}, len(logs)


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize(
    ("touch", "expected"),
    [
        (lambda repository: repository.append_log("s", "more"), ("old", {"old"}, 100)),
        (lambda repository: repository.hold_session("s"), ("old", {"old"}, 100)),
        (anew, ("new", {"new"}, 150)),
        (anew_as_a_copy, ("new", {"new"}, 100)),
    ],
    ids=["append", "hold", "anew", "anew_as_a_copy"],
)
def test_it_is_of_one_moment(
    repository: SessionRepository, touch: Touch, expected: tuple[str, set[str], int], after: int
) -> None:
    repository.create_session(old())
    archive = exported(while_reading(repository, touch, times=1, after=after))
    assert life_of(archive) == expected
    assert imported(archive).created == 1


@pytest.mark.parametrize("after", [1, 2])
def test_an_update_is_there_whole(repository: SessionRepository, after: int) -> None:
    def update(repository: SessionRepository) -> None:
        repository.modify_session("s", change_life)

    def change_life(session: Session) -> None:
        session.answers = {"life": "changed"}
        session.logs += ["old"] * 7

    repository.create_session(old())
    assert life_of(exported(while_reading(repository, update, times=1, after=after))) == ("changed", {"old"}, 107)


@pytest.mark.parametrize("after", [1, 2])
def test_one_that_disappears_is_left_out_and_told(repository: SessionRepository, after: int) -> None:
    repository.create_session(old())
    repository.create_session(session_id="other")
    told: list[Result] = []
    file = io.BytesIO()
    while_reading(repository, lambda repository: repository.delete_session("s"), times=1, after=after)
    report = export_sessions(repository, file, on_session=told.append)
    assert (report.exported, report.gone, report.failed) == (1, 1, 0)
    assert [(each.outcome, each.session_id) for each in told] == [("gone", "s"), ("exported", "other")]
    assert imported(file.getvalue()).created == 1


def test_one_that_never_stands_still_is_left_out_and_told(repository: SessionRepository) -> None:
    repository.create_session(old())
    repository.create_session(session_id="other")
    file = io.BytesIO()
    count = 0

    def touch(repository: SessionRepository) -> None:
        nonlocal count
        count += 1
        repository.modify_session("s", lambda session: session.add_answer("n", count))

    report = export_sessions(while_reading(repository, touch, times=1_000_000), file)
    assert (report.exported, report.gone, report.failed) == (1, 0, 1)
    assert _ATTEMPTS <= count <= 3 * _ATTEMPTS
    (problem,) = report.problems
    assert problem.session_id == "s"
    assert "was changed since" in str(problem.reason)
    assert imported(file.getvalue()).created == 1


@pytest.mark.parametrize("touch", [anew, anew_as_a_copy])
def test_a_copy_is_of_one_moment(new_repository: NewRepository, touch: Touch) -> None:
    source, target = new_repository(), new_repository()
    source.create_session(old())
    assert copy_sessions(while_reading(source, touch, times=1), target).created == 1
    session = target.get_session("s")
    assert session is not None
    assert session.answers == {"life": "new"}
    assert set(session.logs) == {"new"}
    assert exported(target) == exported(source)


# --- rows that somebody has deleted by hand ---


@pytest.mark.parametrize("position", [1, 5, 64, 65, 70, 150])
@pytest.mark.parametrize("history", ["errors", "logs"])
def test_a_history_with_a_gap_is_left_out_and_told(sqlite: Storage, history: str, position: int) -> None:
    engine = sqlite.new_engine()
    repository = SQLAlchemySessionRepository(engine)
    errors = [ErrorEntry(LONG_AGO, "t", f"{number}", "IDEA") for number in range(150)]
    logs = [f"{number}" for number in range(150)]
    repository.create_session(Session(session_id="s", error_history=errors, logs=logs))
    repository.create_session(session_id="other")
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DELETE FROM vibeforge_session_{history} WHERE position = {position}")
    file = io.BytesIO()
    report = export_sessions(repository, file)
    assert (report.exported, report.failed, report.problems[0].session_id) == (1, 1, "s")
    assert "its row counts other numbers of history entries than are stored" in str(report.problems[0].reason)
    engine.dispose()
