"""Copies from one repository to another: conflicts, repeated passes, interruptions and verification."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.archives import LONG_AGO, change, exported, fill, histories, record_of
from tests.support.databases import DATABASES, Storage
from vibeforge_sessions import (
    CorruptSessionError,
    InMemorySessionRepository,
    InvalidArgumentError,
    InvalidSessionError,
    Session,
    SessionFilter,
    SessionRepository,
)
from vibeforge_sessions.archive import OnConflict, Result, copy_sessions
from vibeforge_sessions.testing import NewRepository


@pytest.mark.parametrize(("one", "other"), list(itertools.product(DATABASES, DATABASES)))
def test_copy_between_two_databases_is_exact(request: pytest.FixtureRequest, one: str, other: str) -> None:
    with ExitStack() as stack:
        storages: list[Storage] = [request.getfixturevalue(name) for name in (one, other)]
        source, target = [stack.enter_context(storage.repositories())() for storage in storages]
        fill(source, 2, entries=5)
        change(source, "s1", phase="DEPLOYMENT")
        report = copy_sessions(source, target)
        assert (report.created, report.failed, report.errors, report.logs) == (3, 0, 12, 12)
        assert exported(target) == exported(source)
        assert record_of(target, "s1").write_id != record_of(source, "s1").write_id


def test_second_copy_transfers_only_changed_sessions(new_repository: NewRepository) -> None:
    source, target = new_repository(), new_repository()
    fill(source, 4, entries=3)
    copy_sessions(source, target)
    untouched = record_of(target, "s0")
    source.append_error("s1", "t", "more")
    source.append_log("s2", "more")
    source.modify_session("s3", lambda session: session.add_answer("more", 1))
    source.create_session(session_id="new")
    source.hold_session("empty")
    report = copy_sessions(source, target)
    assert (report.unchanged, report.replaced, report.created, report.failed) == (1, 4, 1, 0)
    assert exported(target) == exported(source)
    assert record_of(target, "s0") == untouched
    assert copy_sessions(source, target).unchanged == 6
    source.delete_session("s1")
    assert copy_sessions(source, target).unchanged == 5
    assert "s1" in target.list_sessions()  # a copy never deletes in the target


def in_both(write: Callable[[SessionRepository], object]) -> Callable[[SessionRepository, SessionRepository], None]:
    """Return a change that applies `write` to both repositories and then appends a log to the source."""

    def both(source: SessionRepository, target: SessionRepository) -> None:
        write(target)
        write(source)
        source.append_log("s", "later")

    return both


def source_recreated(source: SessionRepository, target: SessionRepository) -> None:
    source.delete_session("s")
    source.create_session(Session(session_id="s", logs=["1", "2", "3", "4"]))


def target_has_more_logs(source: SessionRepository, target: SessionRepository) -> None:
    target.append_log("s", "there")


def target_updated(source: SessionRepository, target: SessionRepository) -> None:
    target.modify_session("s", lambda session: session.add_answer("there", 1))


def updated_to_same_version(source: SessionRepository, target: SessionRepository) -> None:
    target.modify_session("s", lambda session: session.add_answer("there", 1))
    source.modify_session("s", lambda session: session.add_answer("here", 1))


def target_updated_last(source: SessionRepository, target: SessionRepository) -> None:
    for number in range(2):
        source.modify_session("s", lambda session, number=number: session.add_answer("here", number))  # type: ignore[misc]
    target.modify_session("s", lambda session: session.add_answer("there", 1))


@pytest.mark.parametrize(
    "write",
    [
        in_both(lambda repository: repository.append_log("s", "x")),
        in_both(lambda repository: repository.append_error("s", "t", "x")),
        source_recreated,
        target_has_more_logs,
        target_updated,
        updated_to_same_version,
        target_updated_last,
    ],
    ids=[
        "different_log",
        "different_error",
        "source_recreated",
        "target_has_more_logs",
        "target_updated",
        "updated_to_same_version",
        "target_updated_last",
    ],
)
@pytest.mark.parametrize("on_conflict", ["fail", "skip", "replace"])
def test_writes_to_target_are_lost_only_with_replace(
    write: Callable[[SessionRepository, SessionRepository], None], on_conflict: OnConflict
) -> None:
    source, target = InMemorySessionRepository(), InMemorySessionRepository()
    source.create_session(Session(session_id="s", created_at=LONG_AGO, logs=["1", "2"]))
    source.create_session(session_id="other")
    copy_sessions(source, target)
    write(source, target)
    before = exported(target)
    results: list[Result] = []
    report = copy_sessions(source, target, on_conflict=on_conflict, on_session=results.append)
    outcome = {"fail": "failed", "skip": "skipped", "replace": "replaced"}[on_conflict]
    assert [result.outcome for result in results if result.session_id == "s"] == [outcome]
    assert report.unchanged == 1
    assert exported(target) == (exported(source) if on_conflict == "replace" else before)
    if on_conflict == "fail":
        assert "a different session with this id, or a later state" in str(report.problems[0].reason)
        with pytest.raises(InvalidSessionError):
            copy_sessions(source, target, stop_on_error=True)


def test_copy_with_newer_keeps_session_with_later_update() -> None:
    source, target = InMemorySessionRepository(), InMemorySessionRepository()
    for repository in (source, target):
        repository.create_session(session_id="newer-there" if repository is target else "newer-here")
    target.create_session(session_id="newer-here")
    source.create_session(session_id="newer-there")
    change(source, "newer-there", updated_at=LONG_AGO)
    change(target, "newer-here", updated_at=LONG_AGO)
    report = copy_sessions(source, target, on_conflict="newer")
    assert (report.replaced, report.skipped) == (1, 1)


def test_conflicting_session_is_replaced_only_on_request(repository: SessionRepository) -> None:
    source = InMemorySessionRepository()
    fill(source, 2)
    repository.create_session(session_id="s1")
    report = copy_sessions(source, repository)
    assert (report.created, report.failed) == (2, 1)
    assert copy_sessions(source, repository, on_conflict="replace").replaced == 1
    assert exported(repository) == exported(source)


def test_interrupted_copy_is_resumed(new_repository: NewRepository) -> None:
    source, target = new_repository(), new_repository()
    fill(source, 5)

    def stop(result: Result) -> None:
        if result.session_id == "s2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_sessions(source, target, on_session=stop)
    done = len(target.list_sessions())
    assert 0 < done < 6
    report = copy_sessions(source, target)
    assert (report.unchanged, report.created) == (done, 6 - done)
    assert exported(target) == exported(source)


def test_copy_reports_target_that_stores_other_logs() -> None:
    class AlteringRepository(InMemorySessionRepository):
        def restore_record(self, record: Any, errors: Any = (), logs: Any = (), **options: Any) -> None:
            logs = [line.replace("started", "ended") for line in logs]
            super().restore_record(record, errors, logs, **options)

    source, target = InMemorySessionRepository(), AlteringRepository()
    fill(source, 1)
    report = copy_sessions(source, target)
    assert (report.created, report.failed) == (1, 1)
    assert report.problems[0].session_id == "s0"
    assert "differs from the copied data" in str(report.problems[0].reason)
    with pytest.raises(CorruptSessionError):
        copy_sessions(source, AlteringRepository(), stop_on_error=True)


def test_thorough_copy_compares_histories(new_repository: NewRepository) -> None:
    source, target = new_repository(), new_repository()
    fill(source, 1)
    copy_sessions(source, target)
    record = record_of(target, "s0")
    errors, logs = histories(target, "s0")
    target.restore_record(record, errors, [line.upper() for line in logs], replacing=record)  # only histories differ
    assert copy_sessions(source, target).unchanged == 2
    report = copy_sessions(source, target, thorough=True)
    assert (report.unchanged, report.failed) == (1, 1)
    assert copy_sessions(source, target, thorough=True, on_conflict="replace").replaced == 1
    assert copy_sessions(source, target, thorough=True).unchanged == 2


def test_unreadable_session_does_not_stop_the_copy() -> None:
    source = InMemorySessionRepository()
    fill(source, 2)
    original = source.get_record

    def get_record(session_id: str) -> Any:
        if session_id == "s1":
            raise CorruptSessionError(session_id, "its documents are missing")
        return original(session_id)

    source.get_record = get_record  # type: ignore[method-assign]
    report = copy_sessions(source, InMemorySessionRepository())
    assert (report.created, report.failed) == (2, 1)


def test_copy_transfers_only_sessions_that_match_the_filter(new_repository: NewRepository) -> None:
    source, target = new_repository(), new_repository()
    fill(source, 1)
    assert copy_sessions(source, target, SessionFilter(has_errors=True)).created == 1
    assert target.list_sessions() == ["s0"]


def test_copy_rejects_invalid_arguments() -> None:
    repository = InMemorySessionRepository()
    with pytest.raises(InvalidArgumentError, match="same repository"):
        copy_sessions(repository, repository)
    with pytest.raises(InvalidArgumentError, match="on_conflict"):
        copy_sessions(repository, InMemorySessionRepository(), on_conflict="rename")  # type: ignore[arg-type]
