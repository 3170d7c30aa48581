"""A session that was read, changed and never stored is found: which fields, and who read it."""

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
    """It passes everything on as it is."""

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
    """Return the file and line of the caller."""
    frame = inspect.stack()[1]
    return f"{frame.filename}:{frame.lineno}"


def read(repository: SessionRepository, **options: Any) -> Session:
    session = repository.get_session("s", **options)
    assert session is not None
    return session


def fields(tracked: TrackedSessionRepository[Any]) -> list[tuple[str, ...]]:
    return [lost.fields for lost in tracked.unsaved_changes()]


def answer(session: Session) -> None:
    session.add_answer("audience", SECRET)


CHANGES: dict[str, tuple[Callable[[Session], object], tuple[str, ...]]] = {
    "a method": (answer, ("answers",)),
    "in place": (lambda session: session.answers["deep"].append(1), ("answers",)),
    "the order of keys": (lambda session: session.answers.update(deep=session.answers.pop("deep")), ("answers",)),
    "a type alone": (lambda session: session.answers.update(one=1.0), ("answers",)),
    "assignment": (lambda session: setattr(session, "concept", {"title": SECRET}), ("concept",)),
    "phase": (lambda session: session.update_phase(SessionPhase.EXECUTION), ("phase",)),
    "phase by its text": (lambda session: setattr(session, "phase", "EXECUTION"), ("phase",)),
    "an entry": (lambda session: session.add_error("t", SECRET), ("error_history",)),
    "a line": (lambda session: session.add_log(SECRET), ("logs",)),
    "an entry removed": (lambda session: session.error_history.clear(), ("error_history",)),
    "tasks": (lambda session: session.completed_task_ids.append("t1"), ("completed_task_ids",)),
    "an unstorable value": (lambda session: session.answers.update(bad=float("nan")), ("answers",)),
    "time alone": (lambda session: setattr(session, "updated_at", Session().updated_at), ("updated_at",)),
}


@pytest.fixture
def stored(tracked: TrackedSessionRepository) -> TrackedSessionRepository:
    session = Session(session_id="s", answers={"deep": [], "one": 1})
    session.add_error("t", "stored")
    session.add_log("stored")
    tracked.create_session(session)
    return tracked


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_that_is_dropped(stored: TrackedSessionRepository, case: str, caplog: Any) -> None:
    change, changed = CHANGES[case]
    session, here = read(stored), f"{__file__}:{inspect.getsourcelines(read)[1] + 1}"
    change(session)
    assert fields(stored) == [changed]  # while it is still there
    assert caplog.records == []
    del session
    assert stored.unsaved_changes() == [UnsavedChanges("s", changed, here)]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("vibeforge_sessions.testing.unsaved_changes", logging.WARNING)
    text = record.getMessage()
    assert text == f"session 's' was changed ({', '.join(changed)}) and never stored; it was read at {here}"
    assert SECRET not in text


def test_several_fields_in_the_order_of_the_class(stored: TrackedSessionRepository) -> None:
    session = read(stored, recent=0)
    session.add_log("x")
    session.add_answer("q", "a")
    session.update_phase(SessionPhase.FAILED)
    del session
    assert fields(stored) == [("phase", "answers", "logs")]


@pytest.mark.parametrize("recent", [None, 0, 1])
def test_what_is_stored_or_unchanged_is_not_lost(stored: TrackedSessionRepository, recent: int | None) -> None:
    class Kind(IntEnum):
        ONE = 1

    read(stored, recent=recent)
    session = read(stored, recent=recent)
    for change, _ in CHANGES.values():
        if change not in (CHANGES["an entry removed"][0], CHANGES["an unstorable value"][0]):
            change(session)
    session.answers |= {"tuple": (1, 2), "enum": Kind.ONE}
    session.error_history.append({"error_message": "as a dict"})  # type: ignore[arg-type]
    stored.update_session(session)
    assert stored.unsaved_changes() == []
    session.answers["again"] = True
    assert fields(stored) == [("answers",)]
    stored.repository.update_session(session)  # by way of the repository itself: stored is stored
    del session
    assert stored.unsaved_changes() == []


def test_sessions_that_were_created(tracked: TrackedSessionRepository) -> None:
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
    assert [lost.session_id for lost in tracked.unsaved_changes()] == [session_id, "given", "new"]


def test_what_modify_returns(stored: TrackedSessionRepository) -> None:
    session, site = stored.modify_session("s", answer), line()
    assert stored.unsaved_changes() == []
    session.add_log("x")
    del session
    assert stored.unsaved_changes() == [UnsavedChanges("s", ("logs",), site)]


def test_a_session_that_travelled(stored: TrackedSessionRepository) -> None:
    session = Session.from_dict(read(stored).to_dict())
    answer(session)
    stored.update_session(session)
    session.add_log("x")
    del session
    assert fields(stored) == [("logs",)]


def test_whoever_was_told_has_lost_nothing_silently(stored: TrackedSessionRepository) -> None:
    late, other = read(stored), read(stored)
    answer(late)
    other.update_phase(SessionPhase.FAILED)
    stored.update_session(other)
    with pytest.raises(StaleSessionError):
        stored.update_session(late)
    bad = read(stored)
    bad.answers["x"] = object()
    with pytest.raises(InvalidSessionError):
        stored.update_session(bad)
    del late
    assert stored.unsaved_changes() == []
    del bad.answers["x"]
    answer(bad)
    stored.update_session(bad)  # right at the second try, and watched again
    bad.add_log("x")
    del bad
    assert fields(stored) == [("logs",)]


def test_a_change_that_raises_within_modify(stored: TrackedSessionRepository) -> None:
    def failing(session: Session) -> None:
        answer(session)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stored.modify_session("s", failing)
    assert stored.unsaved_changes() == []


def test_what_is_deleted_or_forgotten_on_purpose(stored: TrackedSessionRepository) -> None:
    other = stored.create_session(session_id="other")
    first, second = read(stored), read(stored)
    for session in (first, second, other):
        answer(session)
    stored.forget(second)
    stored.forget(second)
    assert len(stored.unsaved_changes()) == 2
    stored.delete_session("s")
    del first, second, session
    assert [lost.session_id for lost in stored.unsaved_changes()] == ["other"]


class Extended(Session):
    aborted: bool = False
    notes: list[Any] | None = None


def test_what_is_no_field_or_makes_no_sense() -> None:
    class Computing(Session):
        @functools.cached_property
        def computed(self) -> int:
            return len(self.answers)

    tracked = track_unsaved_changes(InMemorySessionRepository(session_type=Computing))
    session = tracked.create_session()
    assert session.computed == 0  # an attribute now, and no change
    session.version = "nonsense"  # type: ignore[assignment]
    del session
    assert tracked.unsaved_changes() == []
    session = tracked.create_session()
    del session.answers
    del session
    assert [lost.fields for lost in tracked.unsaved_changes()] == [("answers",)]


def test_on_an_event_loop() -> None:
    async def work() -> list[UnsavedChanges]:
        tracked = track_unsaved_changes(AsyncInMemorySessionRepository())
        session, site = await tracked.create_session(session_id="s"), line()
        answer(session)
        del session
        other = await tracked.modify_session("s", answer)
        other.add_log("x")
        await tracked.update_session(other)
        late = await tracked.get_session("s")
        assert late is not None
        answer(other)
        await tracked.update_session(other)
        late.add_log("x")
        with pytest.raises(StaleSessionError):
            await tracked.update_session(late)
        del late
        assert tracked.unsaved_changes() == [UnsavedChanges("s", ("answers",), site)]
        other.add_log("y")
        assert len(tracked.unsaved_changes()) == 2
        await tracked.delete_session("s")
        return tracked.unsaved_changes()

    assert len(asyncio.run(work())) == 1


def test_fields_of_a_subclass() -> None:
    repository = InMemorySessionRepository(session_type=Extended)
    tracked = track_unsaved_changes(repository)
    session = tracked.create_session(Extended(notes=[1]))
    assert session.notes is not None
    session.notes.append(2)
    del session
    assert fields(tracked)[-1] == ("notes",)


def test_a_class_that_replaces_its_attributes_is_refused() -> None:
    class Validated(Session, validate_assignment=True):
        pass

    tracked = track_unsaved_changes(InMemorySessionRepository(session_type=Validated))
    with pytest.raises(ConfigurationError, match="Validated cannot be tracked"):
        tracked.create_session()


def test_it_keeps_no_session_and_the_list_has_an_end(tracked: TrackedSessionRepository) -> None:
    tracked.create_session(session_id="s")
    gc.collect()
    session = read(tracked)
    seen = weakref.ref(session)
    del session
    assert seen() is None
    for number in range(1100):
        read(tracked).add_log(str(number))
    assert len(tracked.unsaved_changes()) == 1000
    watched = tracked._tracker._tracked
    assert watched == {}


def test_a_session_in_a_cycle_is_found_by_the_collector(stored: TrackedSessionRepository) -> None:
    session = read(stored)
    answer(session)
    cycle: list[object] = [session]
    cycle.append(cycle)
    del session, cycle
    gc.collect()
    assert [fields(stored), stored._tracker._tracked] == [[("answers",)], {}]


def test_through_the_applications_store() -> None:
    store = SessionStore(lambda: track_unsaved_changes(InMemorySessionRepository()))
    assert isinstance(store.repository, TrackedSessionRepository)
    session, site = store.create_session(), line()
    answer(session)
    del session
    assert [lost.call_site for lost in store.repository.unsaved_changes()] == [site]


def test_threads(tracked: TrackedSessionRepository) -> None:
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
        except BaseException as failure:  # noqa: BLE001 (told below)
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(tracked.unsaved_changes()) == 4 * 25


def test_what_is_still_there_at_the_end_of_the_process(tmp_path: Path) -> None:
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
