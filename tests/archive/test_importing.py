"""Import of sessions: conflicts with stored sessions, interruptions, and concurrent writers."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from tests.support.archives import LONG_AGO, change, closed, edited, exported, fill, filled_archive, imported, record_of
from vibeforge_sessions import (
    ArchiveError,
    InMemorySessionRepository,
    InvalidArgumentError,
    Session,
    SessionRepository,
    StaleSessionError,
)
from vibeforge_sessions.archive import OnConflict, Result
from vibeforge_sessions.repository.serialization import Record
from vibeforge_sessions.testing import NewRepository

ALL: list[OnConflict] = ["fail", "skip", "replace", "newer"]


def store_and_export(repository: SessionRepository, minutes: int, **fields: Any) -> bytes:
    """Store a session that was updated at the given minute, and return it as an archive."""
    repository.create_session(Session(session_id="s", created_at=LONG_AGO, **fields))
    change(repository, "s", updated_at=LONG_AGO + timedelta(minutes=minutes))
    return exported(repository)


@pytest.mark.parametrize("on_conflict", ALL)
def test_import_of_stored_sessions_changes_nothing(repository: SessionRepository, on_conflict: OnConflict) -> None:
    fill(repository, entries=3)
    archive = exported(repository)
    records = [record_of(repository, session_id) for session_id in repository.list_sessions()]
    report = imported(archive, repository, on_conflict=on_conflict)
    assert (report.unchanged, report.created, report.replaced, report.failed, report.errors) == (4, 0, 0, 0, 0)
    assert [record_of(repository, session_id) for session_id in repository.list_sessions()] == records


@pytest.mark.parametrize(
    ("on_conflict", "minutes", "outcome"),
    [
        ("fail", 9, "failed"),
        ("skip", 9, "skipped"),
        ("replace", 9, "replaced"),
        ("replace", 1, "replaced"),
        ("newer", 9, "replaced"),
        ("newer", 5, "skipped"),
        ("newer", 1, "skipped"),
    ],
)
def test_import_of_different_session_follows_on_conflict(
    new_repository: NewRepository, on_conflict: OnConflict, minutes: int, outcome: str
) -> None:
    repository = new_repository()
    before = store_and_export(repository, 5, answers={"from": "here"}, logs=["here"])
    archive = store_and_export(InMemorySessionRepository(), minutes, answers={"from": "there"}, logs=["there", "there"])
    results: list[Result] = []
    report = imported(archive, repository, on_conflict=on_conflict, on_session=results.append)
    assert [(result.outcome, result.session_id, result.line) for result in results] == [(outcome, "s", 2)]
    assert getattr(report, outcome) == 1
    assert exported(repository) == (archive if outcome == "replaced" else before)
    second_report = imported(archive, repository, on_conflict=on_conflict)
    assert second_report.unchanged == (outcome == "replaced")


@pytest.mark.parametrize("history", ["error_history", "logs"])
def test_session_that_differs_in_one_entry_conflicts(repository: SessionRepository, history: str) -> None:
    def entries(text: str) -> dict[str, Any]:
        if history == "logs":
            return {"logs": ["a", text, "c"]}
        times = {"timestamp": LONG_AGO, "task_id": "t", "phase": "IDEA"}
        return {"error_history": [{**times, "error_message": each} for each in ("a", text, "c")]}

    before = store_and_export(repository, 5, **entries("b"))
    archive = store_and_export(InMemorySessionRepository(), 5, **entries("B"))
    assert imported(archive, repository).failed == 1
    assert exported(repository) == before


def test_import_continues_after_conflict_without_stop_on_error(repository: SessionRepository) -> None:
    archive = b"".join(filled_archive())
    repository.create_session(session_id="s1")
    report = imported(archive, repository)
    assert (report.created, report.failed) == (3, 1)
    (problem,) = report.problems
    assert (problem.session_id, problem.outcome) == ("s1", "failed")
    assert repository.delete_session("s0")
    with pytest.raises(ArchiveError, match="session 's1' already exists") as caught:
        imported(archive, repository, stop_on_error=True)
    assert caught.value.line == problem.line
    assert repository.get_session("s0") is None  # the import stopped before it


def test_interrupted_import_is_resumed(new_repository: NewRepository) -> None:
    class StopError(Exception):
        pass

    source = InMemorySessionRepository()
    fill(source, 5, entries=3)
    archive, repository = exported(source), new_repository()

    def stop(result: Result) -> None:
        if result.session_id == "s2":
            raise StopError

    with pytest.raises(StopError):
        imported(archive, repository, on_session=stop)
    assert 0 < len(repository.list_sessions()) < 6
    done = len(repository.list_sessions())
    report = imported(archive, repository)
    assert (report.unchanged, report.created, report.failed) == (done, 6 - done, 0)
    assert exported(repository) == archive


def test_concurrent_append_is_seen_before_replacement(repository: SessionRepository) -> None:
    """Append a log between the comparison of the states and the replacement: the import compares the states again."""
    before = store_and_export(repository, 1, answers={"from": "here"})
    archive = store_and_export(InMemorySessionRepository(), 9, answers={"from": "there"})
    original = repository.restore_record
    calls = 0

    def restore_record(record: Record, *args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            repository.append_log("s", "by another writer")  # now newer than the archive
        original(record, *args, **kwargs)

    repository.restore_record = restore_record  # type: ignore[method-assign]
    assert imported(archive, repository, on_conflict="newer").skipped == 1
    assert record_of(repository, "s").log_count == 1
    calls = 0
    assert imported(archive, repository, on_conflict="replace").replaced == 1
    assert exported(repository) == archive != before
    assert calls == 2


@pytest.mark.parametrize(("exists", "change"), [(True, "deleted"), (False, "created")])
def test_session_created_or_deleted_during_import_is_replaced(
    repository: SessionRepository, exists: bool, change: str
) -> None:
    archive = store_and_export(InMemorySessionRepository(), 9)
    if exists:
        repository.create_session(session_id="s")
    original, first = repository.restore_record, iter([True])

    def restore_record(*args: Any, **kwargs: Any) -> None:
        if next(first, False):
            if exists:
                repository.delete_session("s")
            else:
                repository.create_session(session_id="s")
        original(*args, **kwargs)

    repository.restore_record = restore_record  # type: ignore[method-assign]
    report = imported(archive, repository, on_conflict="replace")
    assert (report.created, report.replaced) == ((1, 0) if exists else (0, 1))
    assert exported(repository) == archive


def test_session_changed_at_every_attempt_is_reported() -> None:
    repository = InMemorySessionRepository()
    repository.create_session(session_id="s")
    archive = store_and_export(InMemorySessionRepository(), 9)

    def restore_record(record: Record, *_: object, **__: object) -> None:
        raise StaleSessionError(record.session_id, 1, 2)

    repository.restore_record = restore_record  # type: ignore[method-assign]
    report = imported(archive, repository, on_conflict="replace")
    assert (report.failed, report.problems[0].session_id) == (1, "s")


# --- future times and duplicate ids ---


@pytest.mark.parametrize("field", ["created_at", "updated_at", "held_at"])
def test_times_more_than_a_day_ahead_are_reported(repository: SessionRepository, field: str) -> None:
    from vibeforge_sessions.model import validation  # noqa: PLC0415

    now = validation.utc_now()
    source = InMemorySessionRepository()
    for session_id, ahead in (("accepted", timedelta(hours=23)), ("rejected", timedelta(hours=25))):
        source.create_session(session_id=session_id)
        change(source, session_id, None, **{field: now + ahead})
    report = imported(exported(source), repository)
    assert repository.list_sessions() == ["accepted"]
    (problem,) = report.problems
    assert problem.session_id == "rejected"
    assert f"{field}: is more than a day ahead" in str(problem.reason)


@pytest.mark.parametrize("on_conflict", ["fail", "skip", "replace"])
def test_duplicate_id_in_one_file_is_reported(repository: SessionRepository, on_conflict: OnConflict) -> None:
    first = store_and_export(InMemorySessionRepository(), 5, answers={"n": 1})
    second = store_and_export(InMemorySessionRepository(), 9, answers={"n": 2})
    report = imported(first + second, repository, on_conflict=on_conflict)
    assert (report.created, report.failed) == (1, 1)
    (problem,) = report.problems
    assert (problem.session_id, problem.line) == ("s", len(first.splitlines()) + 2)
    assert "contains this session twice" in str(problem.reason)
    assert exported(repository) == first


@pytest.mark.parametrize("order", [1, -1], ids=["older_first", "newer_first"])
def test_import_with_newer_keeps_latest_incarnation(repository: SessionRepository, order: int) -> None:
    """Import two incarnations of one id, as an archive of pruned sessions may contain them."""
    states = [store_and_export(InMemorySessionRepository(), minutes, answers={"n": minutes}) for minutes in (5, 9)]
    report = imported(b"".join(states[::order]), repository, on_conflict="newer")
    assert report.failed == 0
    assert exported(repository) == states[1]


def test_invalid_on_conflict_raises() -> None:
    with pytest.raises(InvalidArgumentError, match="on_conflict"):
        imported(b"", on_conflict="rename")


# --- entries that no repository stores ---


@pytest.mark.parametrize("text", ["\x00", "\ud800"], ids=["nul", "surrogate"])
def test_entry_with_unsupported_character_is_reported(repository: SessionRepository, text: str) -> None:
    """Import a log line that is invalid although the checksum agrees."""
    source = InMemorySessionRepository()
    archive = store_and_export(source, 5, logs=["a"])
    lines = edited(archive.splitlines(keepends=True), 2, lambda data: data.update(entries=[text]))
    report = imported(b"".join(closed(record_of(source, "s"), *lines[1:3])), repository)
    assert (report.failed, repository.list_sessions()) == (1, [])
    assert json.dumps(text) not in str(report)


def test_skipped_session_is_not_written(repository: SessionRepository) -> None:
    repository.create_session(session_id="s1")
    repository.restore_record = None  # type: ignore[assignment, method-assign]
    source = InMemorySessionRepository()
    source.create_session(session_id="s1")
    assert imported(exported(source), repository, on_conflict="skip").skipped == 1
