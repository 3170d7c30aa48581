"""Detection of sessions that were read, changed and never stored, with the changed fields and the call site."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import logging
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

from tests.support.databases import Storage
from tests.support.repositories import in_memory
from vibeforge_sessions import (
    AsyncInMemorySessionRepository,
    ConfigurationError,
    InMemorySessionRepository,
    InvalidSessionError,
    Session,
    SessionPhase,
    SessionRepository,
    StaleSessionError,
)
from vibeforge_sessions.compat import SessionStore
from vibeforge_sessions.testing import (
    AsyncSessionRepositoryContract,
    NewAsyncRepository,
    NewRepository,
    SessionRepositoryContract,
)
from vibeforge_sessions.testing.unsaved_changes import TrackedSessionRepository, UnsavedChanges, track_unsaved_changes

SECRET = "s3cret"


@pytest.mark.variant
class TestTracked(SessionRepositoryContract):
    """The contract through the tracking wrapper, which passes all calls to its repository."""

    @pytest.fixture
    def new_repository(self) -> NewRepository:
        return lambda **options: track_unsaved_changes(in_memory(**options))


@pytest.mark.variant
class TestTrackedAsync(AsyncSessionRepositoryContract):
    @pytest.fixture
    def new_async_repository(self) -> NewAsyncRepository:
        return lambda **options: track_unsaved_changes(AsyncInMemorySessionRepository(**options))


@pytest.fixture(params=["memory", "sqlite"])
def tracked(request: pytest.FixtureRequest) -> Iterator[TrackedSessionRepository]:
    storage: Storage = request.getfixturevalue(request.param)
    with storage.repositories() as new_repository:
        yield track_unsaved_changes(new_repository())


def line() -> str:
    """Return the file and the line of the calling code."""
    frame = inspect.stack()[1]
    return f"{frame.filename}:{frame.lineno}"


def read(repository: SessionRepository, **options: Any) -> Session:
    session = repository.get_session("s", **options)
    assert session is not None
    return session


def fields(tracked: TrackedSessionRepository[Any]) -> list[tuple[str, ...]]:
    """Return the changed fields of each unsaved session."""
    return [change.fields for change in tracked.unsaved_changes()]


def answer(session: Session) -> None:
    session.add_answer("audience", SECRET)


CHANGES: dict[str, tuple[Callable[[Session], object], tuple[str, ...]]] = {
    "method": (answer, ("answers",)),
    "in_place": (lambda session: session.answers["deep"].append(1), ("answers",)),
    "key_order": (lambda session: session.answers.update(deep=session.answers.pop("deep")), ("answers",)),
    "type_only": (lambda session: session.answers.update(one=1.0), ("answers",)),
    "assignment": (lambda session: setattr(session, "concept", {"title": SECRET}), ("concept",)),
    "phase": (lambda session: session.update_phase(SessionPhase.EXECUTION), ("phase",)),
    "phase_as_text": (lambda session: setattr(session, "phase", "EXECUTION"), ("phase",)),
    "error_entry": (lambda session: session.add_error("t", SECRET), ("error_history",)),
    "log_line": (lambda session: session.add_log(SECRET), ("logs",)),
    "removed_entry": (lambda session: session.error_history.clear(), ("error_history",)),
    "tasks": (lambda session: session.completed_task_ids.append("t1"), ("completed_task_ids",)),
    "invalid_value": (lambda session: session.answers.update(bad=float("nan")), ("answers",)),
    "time_only": (lambda session: setattr(session, "updated_at", Session().updated_at), ("updated_at",)),
}


@pytest.fixture
def stored(tracked: TrackedSessionRepository) -> TrackedSessionRepository:
    session = Session(session_id="s", answers={"deep": [], "one": 1})
    session.add_error("t", "stored")
    session.add_log("stored")
    tracked.create_session(session)
    return tracked


@pytest.mark.parametrize("case", CHANGES)
def test_unsaved_change_is_reported_when_session_is_collected(
    stored: TrackedSessionRepository, case: str, caplog: Any
) -> None:
    change, changed = CHANGES[case]
    session, here = read(stored), f"{__file__}:{inspect.getsourcelines(read)[1] + 1}"
    change(session)
    assert fields(stored) == [changed]  # also while the session exists
    assert caplog.records == []
    del session
    assert stored.unsaved_changes() == [UnsavedChanges("s", changed, here)]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("vibeforge_sessions.testing.unsaved_changes", logging.WARNING)
    text = record.getMessage()
    assert text == f"session 's' was changed ({', '.join(changed)}) and never stored; it was read at {here}"
    assert SECRET not in text


def test_changed_fields_are_reported_in_order_of_declaration(stored: TrackedSessionRepository) -> None:
    session = read(stored, recent=0)
    session.add_log("x")
    session.add_answer("q", "a")
    session.update_phase(SessionPhase.FAILED)
    del session
    assert fields(stored) == [("phase", "answers", "logs")]


@pytest.mark.parametrize("recent", [None, 0, 1])
def test_stored_or_unchanged_session_is_not_reported(stored: TrackedSessionRepository, recent: int | None) -> None:
    class Kind(IntEnum):
        ONE = 1

    read(stored, recent=recent)
    session = read(stored, recent=recent)
    for change, _ in CHANGES.values():
        if change not in (CHANGES["removed_entry"][0], CHANGES["invalid_value"][0]):
            change(session)
    session.answers |= {"tuple": (1, 2), "enum": Kind.ONE}
    session.error_history.append({"error_message": "as a dict"})  # type: ignore[arg-type]
    stored.update_session(session)
    assert stored.unsaved_changes() == []
    session.answers["again"] = True
    assert fields(stored) == [("answers",)]
    stored.repository.update_session(session)  # an update without the wrapper counts too
    del session
    assert stored.unsaved_changes() == []


def test_changes_after_create_or_update_are_reported(tracked: TrackedSessionRepository) -> None:
    copy, site = tracked.create_session(), line()
    answer(copy)
    session_id = copy.session_id
    del copy
    assert tracked.unsaved_changes() == [UnsavedChanges(session_id, ("answers",), site)]
    given = Session(session_id="given")
    tracked.create_session(given)
    given.add_log("x")
    del given
    assert fields(tracked)[1:] == [("logs",)]
    new = Session(session_id="new")
    tracked.update_session(new)
    new.add_log("x")
    del new
    assert [change.session_id for change in tracked.unsaved_changes()] == [session_id, "given", "new"]


def test_change_of_session_returned_by_modify_is_reported(stored: TrackedSessionRepository) -> None:
    session, site = stored.modify_session("s", answer), line()
    assert stored.unsaved_changes() == []
    session.add_log("x")
    del session
    assert stored.unsaved_changes() == [UnsavedChanges("s", ("logs",), site)]


def test_change_of_session_restored_from_dict_is_reported(stored: TrackedSessionRepository) -> None:
    session = Session.from_dict(read(stored).to_dict())
    answer(session)
    stored.update_session(session)
    session.add_log("x")
    del session
    assert fields(stored) == [("logs",)]


def test_change_whose_update_raised_is_not_reported(stored: TrackedSessionRepository) -> None:
    stale, other = read(stored), read(stored)
    answer(stale)
    other.update_phase(SessionPhase.FAILED)
    stored.update_session(other)
    with pytest.raises(StaleSessionError):
        stored.update_session(stale)
    invalid = read(stored)
    invalid.answers["x"] = object()
    with pytest.raises(InvalidSessionError):
        stored.update_session(invalid)
    del stale
    assert stored.unsaved_changes() == []
    del invalid.answers["x"]
    answer(invalid)
    stored.update_session(invalid)  # succeeds, so the session is tracked again
    invalid.add_log("x")
    del invalid
    assert fields(stored) == [("logs",)]


def test_change_function_that_raises_is_not_reported(stored: TrackedSessionRepository) -> None:
    def failing(session: Session) -> None:
        answer(session)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stored.modify_session("s", failing)
    assert stored.unsaved_changes() == []


def test_deleted_or_forgotten_session_is_not_reported(stored: TrackedSessionRepository) -> None:
    other = stored.create_session(session_id="other")
    first, second = read(stored), read(stored)
    for session in (first, second, other):
        answer(session)
    stored.forget(second)
    stored.forget(second)
    assert len(stored.unsaved_changes()) == 2
    stored.delete_session("s")
    del first, second, session
    assert [change.session_id for change in stored.unsaved_changes()] == ["other"]


class Extended(Session):
    aborted: bool = False
    notes: list[Any] | None = None


def test_cached_properties_and_invalid_versions_are_ignored() -> None:
    class Computing(Session):
        @functools.cached_property
        def computed(self) -> int:
            return len(self.answers)

    tracked = track_unsaved_changes(InMemorySessionRepository(session_type=Computing))
    session = tracked.create_session()
    assert session.computed == 0  # cached as an attribute, which is not a field
    session.version = "nonsense"  # type: ignore[assignment]
    del session
    assert tracked.unsaved_changes() == []
    session = tracked.create_session()
    del session.answers
    del session
    assert [change.fields for change in tracked.unsaved_changes()] == [("answers",)]


def test_async_repository_reports_unsaved_changes() -> None:
    async def work() -> list[UnsavedChanges]:
        tracked = track_unsaved_changes(AsyncInMemorySessionRepository())
        session, site = await tracked.create_session(session_id="s"), line()
        answer(session)
        del session
        other = await tracked.modify_session("s", answer)
        other.add_log("x")
        await tracked.update_session(other)
        stale = await tracked.get_session("s")
        assert stale is not None
        answer(other)
        await tracked.update_session(other)
        stale.add_log("x")
        with pytest.raises(StaleSessionError):
            await tracked.update_session(stale)
        del stale
        assert tracked.unsaved_changes() == [UnsavedChanges("s", ("answers",), site)]
        other.add_log("y")
        assert len(tracked.unsaved_changes()) == 2
        await tracked.delete_session("s")
        return tracked.unsaved_changes()

    assert len(asyncio.run(work())) == 1


def test_change_of_subclass_field_is_reported() -> None:
    repository = InMemorySessionRepository(session_type=Extended)
    tracked = track_unsaved_changes(repository)
    session = tracked.create_session(Extended(notes=[1]))
    assert session.notes is not None
    session.notes.append(2)
    del session
    assert fields(tracked)[-1] == ("notes",)


def test_class_with_validated_assignment_raises() -> None:
    class Validated(Session, validate_assignment=True):
        pass

    tracked = track_unsaved_changes(InMemorySessionRepository(session_type=Validated))
    with pytest.raises(ConfigurationError, match="Validated cannot be tracked"):
        tracked.create_session()


def test_tracker_keeps_no_session_and_limits_its_list(tracked: TrackedSessionRepository) -> None:
    tracked.create_session(session_id="s")
    gc.collect()
    session = read(tracked)
    reference = weakref.ref(session)
    del session
    assert reference() is None
    for number in range(1100):
        read(tracked).add_log(str(number))
    assert len(tracked.unsaved_changes()) == 1000
    remaining = tracked._tracker._tracked
    assert remaining == {}


def test_change_of_session_in_reference_cycle_is_reported(stored: TrackedSessionRepository) -> None:
    session = read(stored)
    answer(session)
    cycle: list[object] = [session]
    cycle.append(cycle)
    del session, cycle
    gc.collect()
    assert [fields(stored), stored._tracker._tracked] == [[("answers",)], {}]


def test_compat_store_reports_unsaved_changes() -> None:
    store = SessionStore(lambda: track_unsaved_changes(InMemorySessionRepository()))
    assert isinstance(store.repository, TrackedSessionRepository)
    session, site = store.create_session(), line()
    answer(session)
    del session
    assert [change.call_site for change in store.repository.unsaved_changes()] == [site]


def test_concurrent_threads_report_all_unsaved_changes(tracked: TrackedSessionRepository) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            session_id = tracked.create_session(session_id=f"s{number}").session_id
            for turn in range(50):
                session = tracked.get_session(session_id)
                assert session is not None
                session.add_answer(str(turn), turn)
                if turn % 2:
                    tracked.update_session(session)
                tracked.unsaved_changes()
        except BaseException as failure:  # noqa: BLE001 (reported below)
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(tracked.unsaved_changes()) == 4 * 25


def test_unsaved_change_is_reported_at_process_exit(tmp_path: Path) -> None:
    code = """
from vibeforge_sessions import InMemorySessionRepository
from vibeforge_sessions.testing import track_unsaved_changes
session = track_unsaved_changes(InMemorySessionRepository()).create_session(session_id="s")
session.add_log("x")
"""
    (tmp_path / "service.py").write_text(code)
    done = subprocess.run([sys.executable, "service.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "session 's' was changed (logs) and never stored; it was read at" in done.stderr
    assert "service.py:4" in done.stderr
