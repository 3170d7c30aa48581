"""Importing: sessions that are there already, interruptions, and others who write meanwhile."""

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


def with_one(repository: SessionRepository, minutes: int, **fields: Any) -> bytes:
    """Store a session that was touched then, and return it as an archive."""
    repository.create_session(Session(session_id="s", created_at=LONG_AGO, **fields))
    change(repository, "s", updated_at=LONG_AGO + timedelta(minutes=minutes))
    return exported(repository)


@pytest.mark.parametrize("on_conflict", ALL)
def test_what_is_there_already_is_done(repository: SessionRepository, on_conflict: OnConflict) -> None:
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
def test_another_one_is_there(
    new_repository: NewRepository, on_conflict: OnConflict, minutes: int, outcome: str
) -> None:
    repository = new_repository()
    before = with_one(repository, 5, answers={"from": "here"}, logs=["here"])
    archive = with_one(InMemorySessionRepository(), minutes, answers={"from": "there"}, logs=["there", "there"])
    told: list[Result] = []
    report = imported(archive, repository, on_conflict=on_conflict, on_session=told.append)
    assert [(result.outcome, result.session_id, result.line) for result in told] == [(outcome, "s", 2)]
    assert getattr(report, outcome) == 1
    assert exported(repository) == (archive if outcome == "replaced" else before)
    again = imported(archive, repository, on_conflict=on_conflict)
    assert again.unchanged == (outcome == "replaced")


@pytest.mark.parametrize("history", ["error_history", "logs"])
def test_one_entry_that_differs_makes_it_another(repository: SessionRepository, history: str) -> None:
    def entries(text: str) -> dict[str, Any]:
        if history == "logs":
            return {"logs": ["a", text, "c"]}
        times = {"timestamp": LONG_AGO, "task_id": "t", "phase": "IDEA"}
        return {"error_history": [{**times, "error_message": each} for each in ("a", text, "c")]}

    before = with_one(repository, 5, **entries("b"))
    archive = with_one(InMemorySessionRepository(), 5, **entries("B"))
    assert imported(archive, repository).failed == 1
    assert exported(repository) == before


def test_the_rest_goes_on_unless_asked(repository: SessionRepository) -> None:
    archive = b"".join(filled_archive())
    repository.create_session(session_id="s1")
    report = imported(archive, repository)
    assert (report.created, report.failed) == (3, 1)
    (problem,) = report.problems
    assert (problem.session_id, problem.outcome) == ("s1", "failed")
    assert repository.delete_session("s0")
    with pytest.raises(ArchiveError, match="there is a session 's1' already") as caught:
        imported(archive, repository, stop_on_error=True)
    assert caught.value.line == problem.line
    assert repository.get_session("s0") is None  # it comes after that


def test_an_interrupted_import_is_begun_again(new_repository: NewRepository) -> None:
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


def test_somebody_else_writes_to_it_meanwhile(repository: SessionRepository) -> None:
    """The state that is replaced is the one that was looked at: it is looked at again."""
    before = with_one(repository, 1, answers={"from": "here"})
    archive = with_one(InMemorySessionRepository(), 9, answers={"from": "there"})
    honest = repository.restore_record
    calls = 0

    def restore_record(record: Record, *args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            repository.append_log("s", "by somebody else")  # it is newer than the file now
        honest(record, *args, **kwargs)

    repository.restore_record = restore_record  # type: ignore[method-assign]
    assert imported(archive, repository, on_conflict="newer").skipped == 1
    assert record_of(repository, "s").log_count == 1
    calls = 0
    assert imported(archive, repository, on_conflict="replace").replaced == 1
    assert exported(repository) == archive != before
    assert calls == 2


@pytest.mark.parametrize(("there", "calls"), [(True, "deleted"), (False, "created")])
def test_it_comes_or_goes_meanwhile(repository: SessionRepository, there: bool, calls: str) -> None:
    archive = with_one(InMemorySessionRepository(), 9)
    if there:
        repository.create_session(session_id="s")
    honest, first = repository.restore_record, iter([True])

    def restore_record(*args: Any, **kwargs: Any) -> None:
        if next(first, False):
            if there:
                repository.delete_session("s")
            else:
                repository.create_session(session_id="s")
        honest(*args, **kwargs)

    repository.restore_record = restore_record  # type: ignore[method-assign]
    report = imported(archive, repository, on_conflict="replace")
    assert (report.created, report.replaced) == ((1, 0) if there else (0, 1))
    assert exported(repository) == archive


def test_one_that_never_stands_still_is_told() -> None:
    repository = InMemorySessionRepository()
    repository.create_session(session_id="s")
    archive = with_one(InMemorySessionRepository(), 9)

    def restore_record(record: Record, *_: object, **__: object) -> None:
        raise StaleSessionError(record.session_id, 1, 2)

    repository.restore_record = restore_record  # type: ignore[method-assign]
    report = imported(archive, repository, on_conflict="replace")
    assert (report.failed, report.problems[0].session_id) == (1, "s")


# --- clocks, and ids that are there twice ---


@pytest.mark.parametrize("field", ["created_at", "updated_at", "held_at"])
def test_clocks_in_the_future(repository: SessionRepository, field: str) -> None:
    from vibeforge_sessions.model import validation  # noqa: PLC0415

    now = validation.utc_now()
    source = InMemorySessionRepository()
    for session_id, ahead in (("soon", timedelta(hours=23)), ("never", timedelta(hours=25))):
        source.create_session(session_id=session_id)
        change(source, session_id, None, **{field: now + ahead})
    report = imported(exported(source), repository)
    assert repository.list_sessions() == ["soon"]
    (problem,) = report.problems
    assert problem.session_id == "never"
    assert f"{field}: is more than a day ahead" in str(problem.reason)


@pytest.mark.parametrize("on_conflict", ["fail", "skip", "replace"])
def test_an_id_that_is_there_twice(repository: SessionRepository, on_conflict: OnConflict) -> None:
    first = with_one(InMemorySessionRepository(), 5, answers={"n": 1})
    second = with_one(InMemorySessionRepository(), 9, answers={"n": 2})
    report = imported(first + second, repository, on_conflict=on_conflict)
    assert (report.created, report.failed) == (1, 1)
    (problem,) = report.problems
    assert (problem.session_id, problem.line) == ("s", len(first.splitlines()) + 2)
    assert "contains this session twice" in str(problem.reason)
    assert exported(repository) == first


@pytest.mark.parametrize("order", [1, -1])
def test_the_newer_of_two_states(repository: SessionRepository, order: int) -> None:
    """As an archive of what was deleted may have them: deleted, made anew, and deleted again."""
    states = [with_one(InMemorySessionRepository(), minutes, answers={"n": minutes}) for minutes in (5, 9)]
    report = imported(b"".join(states[::order]), repository, on_conflict="newer")
    assert report.failed == 0
    assert exported(repository) == states[1]


def test_a_choice_that_is_none() -> None:
    with pytest.raises(InvalidArgumentError, match="on_conflict"):
        imported(b"", on_conflict="rename")


# --- what a file says and no repository keeps ---


@pytest.mark.parametrize("text", ["\x00", "\ud800"])
def test_an_entry_that_no_history_keeps(repository: SessionRepository, text: str) -> None:
    """Its checksum is right, so it was written so."""
    source = InMemorySessionRepository()
    archive = with_one(source, 5, logs=["a"])
    lines = edited(archive.splitlines(keepends=True), 2, lambda data: data.update(entries=[text]))
    report = imported(b"".join(closed(record_of(source, "s"), *lines[1:3])), repository)
    assert (report.failed, repository.list_sessions()) == (1, [])
    assert json.dumps(text) not in str(report)


def test_a_session_that_the_target_takes_nothing_of(repository: SessionRepository) -> None:
    repository.create_session(session_id="s1")
    repository.restore_record = None  # type: ignore[assignment, method-assign]
    source = InMemorySessionRepository()
    source.create_session(session_id="s1")
    assert imported(exported(source), repository, on_conflict="skip").skipped == 1
