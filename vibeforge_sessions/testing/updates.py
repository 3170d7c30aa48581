"""The contract, part two: update_session and modify_session."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from vibeforge_sessions import (
    InvalidSessionError,
    Session,
    SessionNotFoundError,
    SessionPhase,
    SessionRepository,
    StaleSessionError,
)
from vibeforge_sessions.testing.base import SESSION_ID, UNKNOWN_ID, assert_same, full_session, stored

CHANGES: list[tuple[str, Any]] = [
    ("phase", SessionPhase.EXECUTION),
    ("current_question_index", 7),
    ("answers", {"q": {"deep": [1]}}),
    ("intent_profile", {"a": 1}),
    ("build_spec", {"b": 1}),
    ("concept", None),
    ("task_graph", {"tasks": []}),
    ("completed_task_ids", ["t1", "t2", "t3"]),
    ("failed_task_ids", []),
    ("active_task_id", None),
    ("active_task_id", "t9"),
    ("pending_clarification", None),
    ("clarification_answer", {"choice": 2}),
]


def travelled(session: Session) -> Session:
    """Return the session after a journey as JSON text."""
    return type(session).from_dict(json.loads(json.dumps(session.to_dict())))


class UpdateTests:
    """update_session, modify_session."""

    @pytest.mark.parametrize(("name", "value"), CHANGES)
    def test_each_field_is_stored_alone(self, repository: SessionRepository, name: str, value: Any) -> None:
        repository.create_session(full_session())
        session = stored(repository)
        setattr(session, name, value)
        repository.update_session(session)
        after = stored(repository)
        assert_same(after, session)
        assert getattr(after, name) == value
        assert after.version == 2
        expected = full_session()
        for other in ("answers", "concept", "task_graph", "completed_task_ids", "failed_task_ids", "build_spec"):
            if other != name:
                assert getattr(after, other) == getattr(expected, other)

    def test_the_callers_version_and_time_are_refreshed(self, repository: SessionRepository) -> None:
        session = repository.create_session()
        before = session.updated_at
        for version in (2, 3, 4):
            session.add_log("only a log, which moves no time by itself")
            repository.update_session(session)
            after = stored(repository, session.session_id)
            assert session.version == after.version == version
            assert session.updated_at == after.updated_at > before
            before = session.updated_at

    def test_without_a_change_nothing_is_written(self, repository: SessionRepository) -> None:
        repository.create_session(full_session())
        for session in (stored(repository), travelled(stored(repository)), stored(repository).model_copy(deep=True)):
            before = stored(repository)
            repository.update_session(session)
            assert session.version == 1
            assert_same(stored(repository), before)
            assert_same(session, before)

    def test_a_new_time_alone_is_a_change(self, repository: SessionRepository) -> None:
        session = repository.create_session(full_session())
        session.updated_at += timedelta(days=1)
        repository.update_session(session)
        assert stored(repository).updated_at == session.updated_at
        assert session.version == 2

    def test_the_stored_time_never_goes_back(self, repository: SessionRepository) -> None:
        given = full_session()
        given.updated_at = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
        session = repository.create_session(given)
        session.update_phase(SessionPhase.IDEA)
        session.updated_at = datetime(1, 1, 1, tzinfo=UTC)
        repository.update_session(session)
        repository.append_error(SESSION_ID, "t", "m")
        repository.append_log(SESSION_ID, "l")
        assert session.updated_at == stored(repository).updated_at == given.updated_at

    def test_a_stale_update_is_refused_whole(self, repository: SessionRepository) -> None:
        repository.create_session(full_session())
        first, second = stored(repository), stored(repository)
        first.update_phase(SessionPhase.FAILED)
        repository.update_session(first)
        second.update_phase(SessionPhase.COMPLETE)
        second.add_answer("late", 1)
        second.concept = {"late": True}
        second.add_error("late", "late")
        second.add_log("late")
        kept = second.model_copy(deep=True)
        with pytest.raises(StaleSessionError) as caught:
            repository.update_session(second)
        assert (caught.value.session_id, caught.value.version, caught.value.stored_version) == (SESSION_ID, 1, 2)
        assert_same(stored(repository), first)
        assert_same(second, kept)
        assert len(repository.list_errors(SESSION_ID)) == len(repository.list_logs(SESSION_ID)) == 1
        with pytest.raises(StaleSessionError):
            repository.update_session(second)

    def test_a_stale_session_without_a_change_is_no_conflict(self, repository: SessionRepository) -> None:
        repository.create_session(full_session())
        first, second = stored(repository), stored(repository)
        first.update_phase(SessionPhase.FAILED)
        repository.update_session(first)
        repository.update_session(second)
        assert_same(stored(repository), first)

    def test_a_deleted_session_does_not_come_back(self, repository: SessionRepository) -> None:
        session = repository.create_session(full_session())
        late = travelled(session)
        repository.delete_session(SESSION_ID)
        for changed in (session, late):
            changed.add_answer("q", 1)
            with pytest.raises(SessionNotFoundError):
                repository.update_session(changed)
        assert repository.list_sessions() == []

    def test_a_session_made_anew_under_the_same_id_is_another(self, repository: SessionRepository) -> None:
        session = repository.create_session(full_session())
        late = travelled(session)
        repository.delete_session(SESSION_ID)
        repository.create_session(session_id=SESSION_ID)
        for changed in (session, late):
            changed.add_answer("q", 1)
            with pytest.raises(StaleSessionError) as caught:
                repository.update_session(changed)
            assert caught.value.version == caught.value.stored_version == 1
        assert stored(repository).answers == {}

    def test_a_namesake_of_a_session_that_travelled(self, repository: SessionRepository) -> None:
        repository.create_session(Session(session_id=SESSION_ID))
        late = travelled(stored(repository))
        repository.delete_session(SESSION_ID)
        repository.create_session(
            Session(session_id=SESSION_ID, created_at=late.created_at, updated_at=late.updated_at)
        )
        with pytest.raises(StaleSessionError):
            repository.update_session(late)

    def test_a_session_that_was_never_stored_is_created(self, repository: SessionRepository) -> None:
        session = full_session()
        repository.update_session(session)
        assert session.version == 1
        assert_same(stored(repository), session)

    def test_a_version_without_a_past_is_refused(self, repository: SessionRepository) -> None:
        repository.create_session(full_session())
        made_up = Session(session_id=SESSION_ID, version=1)
        fields = stored(repository).to_dict()
        del fields["stored"]
        for session in (made_up, Session.from_dict(fields)):
            with pytest.raises(InvalidSessionError):
                repository.update_session(session)
        assert stored(repository).version == 1

    def test_a_session_that_travelled_as_json_is_updated(self, repository: SessionRepository) -> None:
        repository.create_session(full_session())
        repository.append_error(SESSION_ID, "others", "meanwhile 1")
        session = stored(repository)
        session.add_error("mine", "before the journey")
        session.add_log("before the journey")
        session = travelled(session)
        repository.append_error(SESSION_ID, "others", "meanwhile 2")
        session.add_error("mine", "after the journey")
        session.update_phase(SessionPhase.VERIFICATION)
        repository.update_session(session)
        after = stored(repository)
        assert [(entry.task_id, entry.position) for entry in after.error_history] == [
            ("t3", 1),
            ("others", 2),
            ("others", 3),
            ("mine", 4),
            ("mine", 5),
        ]
        assert len(after.logs) == 2
        assert (after.phase, after.version, session.version) == (SessionPhase.VERIFICATION, 2, 2)
        # and once more: its list lacks the others' entry, and counts as stored all the same
        session = travelled(session)
        assert [entry.position for entry in session.error_history] == [1, 2, 4, 5]
        session.add_log("again")
        repository.update_session(session)
        assert len(repository.list_errors(SESSION_ID)) == 5
        assert len(repository.list_logs(SESSION_ID)) == 3

    def test_a_journey_keeps_what_was_omitted(self, repository: SessionRepository) -> None:
        repository.create_session(full_session())
        repository.append_error(SESSION_ID, "t", "m")
        part = repository.get_session(SESSION_ID, recent=1)
        assert part is not None
        back = travelled(part)
        assert_same(back, part)
        assert (back.omitted_errors, back.omitted_logs) == (1, 0)
        back.add_error("t", "new")
        repository.update_session(back)
        assert [entry.position for entry in stored(repository).error_history] == [1, 2, 3]

    def test_a_stale_session_that_travelled(self, repository: SessionRepository) -> None:
        session = travelled(repository.create_session(full_session()))
        repository.modify_session(SESSION_ID, lambda other: other.add_answer("q", 1))
        session.add_answer("q", 2)
        with pytest.raises(StaleSessionError):
            repository.update_session(session)
        assert stored(repository).answers["q"] == 1

    @pytest.mark.parametrize(
        ("path", "spoil"),
        [
            ("phase", lambda s: setattr(s, "phase", "NO_SUCH_PHASE")),
            ("created_at", lambda s: setattr(s, "created_at", s.created_at - timedelta(seconds=1))),
            ("created_at", lambda s: setattr(s, "created_at", s.created_at.isoformat())),
            ("updated_at", lambda s: setattr(s, "updated_at", s.updated_at.replace(tzinfo=None))),
            ("updated_at", lambda s: setattr(s, "updated_at", None)),
            ("current_question_index", lambda s: setattr(s, "current_question_index", -1)),
            ("current_question_index", lambda s: setattr(s, "current_question_index", 2**63)),
            ("current_question_index", lambda s: setattr(s, "current_question_index", True)),
            ("active_task_id", lambda s: setattr(s, "active_task_id", "")),
            ("active_task_id", lambda s: setattr(s, "active_task_id", "x" * 256)),
            ("active_task_id", lambda s: setattr(s, "active_task_id", "a\nb")),
            ("completed_task_ids[2]", lambda s: s.completed_task_ids.append("\ud800")),
            ("failed_task_ids[1]", lambda s: s.failed_task_ids.append(7)),
            ("completed_task_ids", lambda s: setattr(s, "completed_task_ids", "t1")),
            ("answers", lambda s: setattr(s, "answers", None)),
            ("answers", lambda s: setattr(s, "answers", [1])),
            ("concept", lambda s: setattr(s, "concept", "text")),
            ("logs", lambda s: setattr(s, "logs", None)),
            ("error_history", lambda s: setattr(s, "error_history", ())),
            ("error_history[1]", lambda s: s.error_history.append("text")),
            ("error_history[1]", lambda s: s.error_history.append({"message": "x"})),
            ("version", lambda s: setattr(s, "version", "1")),
        ],
    )
    def test_what_cannot_be_kept_is_refused_with_its_path(
        self, repository: SessionRepository, path: str, spoil: Callable[[Session], None]
    ) -> None:
        repository.create_session(full_session())
        session = stored(repository)
        session.add_log("not to be written")
        spoil(session)
        with pytest.raises(InvalidSessionError) as caught:
            repository.update_session(session)
        assert caught.value.path == path
        assert isinstance(caught.value, ValueError)
        assert stored(repository).version == 1
        assert len(repository.list_logs(SESSION_ID)) == 1

    def test_times_of_other_zones_become_utc(self, repository: SessionRepository) -> None:
        session = Session(session_id=SESSION_ID)
        here = timezone(timedelta(hours=5, minutes=30))
        session.created_at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=here)
        repository.create_session(session)
        assert stored(repository).created_at == datetime(2026, 1, 1, 21, 34, 5, 678901, tzinfo=UTC)
        assert stored(repository).created_at.tzinfo is UTC
        session.add_log("and it can be updated still")
        repository.update_session(session)

    def test_modify_reads_changes_and_stores(self, repository: SessionRepository) -> None:
        repository.create_session(full_session())
        session = repository.modify_session(SESSION_ID, lambda session: session.update_phase(SessionPhase.EXECUTION))
        assert session.version == 2
        assert_same(stored(repository), session)

    def test_modify_tries_again_on_a_stale_version(self, repository: SessionRepository) -> None:
        repository.create_session(session_id=SESSION_ID)
        seen: list[int] = []

        def change(session: Session) -> None:
            seen.append(session.version)
            if len(seen) < 3:
                repository.modify_session(SESSION_ID, lambda other: other.add_answer(f"other {len(seen)}", 1))
            session.add_answer("mine", len(seen))

        repository.modify_session(SESSION_ID, change)
        assert seen == [1, 2, 3]
        assert stored(repository).answers == {"other 1": 1, "other 2": 1, "mine": 3}

    def test_modify_gives_up_after_its_attempts(self, repository: SessionRepository) -> None:
        repository.create_session(session_id=SESSION_ID)
        calls = []

        def change(session: Session) -> None:
            calls.append(session)
            repository.modify_session(SESSION_ID, lambda other: other.add_answer("other", len(calls)))
            session.add_answer("mine", 1)

        with pytest.raises(StaleSessionError):
            repository.modify_session(SESSION_ID, change, attempts=2)
        assert len(calls) == 2
        assert stored(repository).answers == {"other": 2}

    def test_modify_writes_nothing_if_the_change_raises(self, repository: SessionRepository) -> None:
        repository.create_session(full_session())

        def change(session: Session) -> None:
            session.add_answer("half", 1)
            raise KeyError("the caller's own")

        with pytest.raises(KeyError, match="own"):
            repository.modify_session(SESSION_ID, change)
        assert stored(repository).version == 1

    @pytest.mark.parametrize("attempts", [0, -1, True, 1.5])
    def test_modify_needs_an_attempt(self, repository: SessionRepository, attempts: Any) -> None:
        repository.create_session(session_id=SESSION_ID)
        with pytest.raises(InvalidSessionError):
            repository.modify_session(SESSION_ID, lambda _: None, attempts=attempts)

    def test_modify_of_a_session_deleted_meanwhile(self, repository: SessionRepository) -> None:
        repository.create_session(session_id=UNKNOWN_ID)

        def change(session: Session) -> None:
            repository.delete_session(UNKNOWN_ID)
            session.add_answer("q", 1)

        with pytest.raises(SessionNotFoundError):
            repository.modify_session(UNKNOWN_ID, change)
        assert repository.list_sessions() == []
