"""Consistent reads of sessions that another writer changes during an export or a copy."""

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

Write = Callable[[SessionRepository], object]


def old() -> Session:
    return Session(session_id="s", created_at=LONG_AGO, answers={"incarnation": "old"}, logs=["old"] * 100)


def new() -> Session:
    return Session(session_id="s", created_at=LONG_AGO, answers={"incarnation": "new"}, logs=["new"] * 150)


def recreate(repository: SessionRepository) -> None:
    repository.delete_session("s")
    repository.create_session(new())


def recreate_with_same_version(repository: SessionRepository) -> None:
    """Replace the session by another incarnation of the same version, times and length: only the write id differs."""
    other = InMemorySessionRepository()
    session = new()
    session.logs = session.logs[:100]
    other.create_session(session)
    record, before = record_of(other, "s"), record_of(repository, "s")
    change(other, "s", updated_at=before.updated_at, version=before.version)
    repository.restore_record(record_of(other, "s"), *histories(other, "s"), replacing=before)
    assert record.counts == before.counts


def writing_during_reads(
    repository: SessionRepository, write: Write, *, times: int, after: int = 1
) -> SessionRepository:
    """Return the repository with a `write` before each of the given number of log reads."""
    original = repository.list_logs
    calls = 0

    def list_logs(session_id: str, **options: Any) -> list[str]:
        nonlocal calls
        calls += 1
        if after <= calls < after + times:
            write(repository)
        return original(session_id, **options)

    repository.list_logs = list_logs  # type: ignore[method-assign]
    return repository


def incarnation_in(archive: bytes) -> tuple[str, set[str], int]:
    """Return the incarnation of an archive's only session by its answers and by its logs, and the number of logs."""
    lines = [json.loads(line) for line in archive.splitlines()]
    (header,) = [line for line in lines if line["kind"] == "session"]
    logs = [entry for line in lines if line["kind"] == "logs" for entry in line["entries"]]
    assert header["logs"] == len(logs)
    return header["documents"]["answers"]["incarnation"], {log.rsplit(" ", 1)[-1] for log in logs}, len(logs)


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda repository: repository.append_log("s", "more"), ("old", {"old"}, 100)),
        (lambda repository: repository.hold_session("s"), ("old", {"old"}, 100)),
        (recreate, ("new", {"new"}, 150)),
        (recreate_with_same_version, ("new", {"new"}, 100)),
    ],
    ids=["append", "hold", "recreate", "recreate_with_same_version"],
)
def test_export_during_writes_contains_one_state(
    repository: SessionRepository, write: Write, expected: tuple[str, set[str], int], after: int
) -> None:
    repository.create_session(old())
    archive = exported(writing_during_reads(repository, write, times=1, after=after))
    assert incarnation_in(archive) == expected
    assert imported(archive).created == 1


@pytest.mark.parametrize("after", [1, 2])
def test_export_during_update_contains_complete_update(repository: SessionRepository, after: int) -> None:
    def update(repository: SessionRepository) -> None:
        repository.modify_session("s", change_answers_and_logs)

    def change_answers_and_logs(session: Session) -> None:
        session.answers = {"incarnation": "changed"}
        session.logs += ["old"] * 7

    repository.create_session(old())
    assert incarnation_in(exported(writing_during_reads(repository, update, times=1, after=after))) == (
        "changed",
        {"old"},
        107,
    )


@pytest.mark.parametrize("after", [1, 2])
def test_session_deleted_during_export_is_reported_as_gone(repository: SessionRepository, after: int) -> None:
    repository.create_session(old())
    repository.create_session(session_id="other")
    results: list[Result] = []
    file = io.BytesIO()
    writing_during_reads(repository, lambda repository: repository.delete_session("s"), times=1, after=after)
    report = export_sessions(repository, file, on_session=results.append)
    assert (report.exported, report.gone, report.failed) == (1, 1, 0)
    assert [(each.outcome, each.session_id) for each in results] == [("gone", "s"), ("exported", "other")]
    assert imported(file.getvalue()).created == 1


def test_session_changed_at_every_read_is_reported_as_failed(repository: SessionRepository) -> None:
    repository.create_session(old())
    repository.create_session(session_id="other")
    file = io.BytesIO()
    count = 0

    def write(repository: SessionRepository) -> None:
        nonlocal count
        count += 1
        repository.modify_session("s", lambda session: session.add_answer("n", count))

    report = export_sessions(writing_during_reads(repository, write, times=1_000_000), file)
    assert (report.exported, report.gone, report.failed) == (1, 0, 1)
    assert _ATTEMPTS <= count <= 3 * _ATTEMPTS
    (problem,) = report.problems
    assert problem.session_id == "s"
    assert "was changed since" in str(problem.reason)
    assert imported(file.getvalue()).created == 1


@pytest.mark.parametrize("write", [recreate, recreate_with_same_version])
def test_copy_during_writes_contains_one_state(new_repository: NewRepository, write: Write) -> None:
    source, target = new_repository(), new_repository()
    source.create_session(old())
    assert copy_sessions(writing_during_reads(source, write, times=1), target).created == 1
    session = target.get_session("s")
    assert session is not None
    assert session.answers == {"incarnation": "new"}
    assert set(session.logs) == {"new"}
    assert exported(target) == exported(source)


# --- rows deleted by hand ---


@pytest.mark.parametrize("position", [1, 5, 64, 65, 70, 150])
@pytest.mark.parametrize("history", ["errors", "logs"])
def test_session_with_gap_in_history_is_reported_as_failed(sqlite: Storage, history: str, position: int) -> None:
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
    assert "the number of stored history entries differs from the count in its row" in str(report.problems[0].reason)
    engine.dispose()
