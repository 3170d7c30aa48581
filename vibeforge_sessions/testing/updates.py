"""Contract tests of `update_session` and `modify_session`."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from vibeforge_sessions import (
    InvalidArgumentError,
    InvalidSessionError,
    Session,
    SessionNotFoundError,
    SessionPhase,
    SessionRepository,
    StaleSessionError,
)
from vibeforge_sessions.testing.base import SESSION_ID, UNKNOWN_ID, assert_same, full_session, stored

CHANGES: dict[str, tuple[str, Any]] = {
    "phase": ("phase", SessionPhase.EXECUTION),
    "current_question_index": ("current_question_index", 7),
    "answers": ("answers", {"q": {"deep": [1]}}),
    "intent_profile": ("intent_profile", {"a": 1}),
    "build_spec": ("build_spec", {"b": 1}),
    "concept_removed": ("concept", None),
    "task_graph": ("task_graph", {"tasks": []}),
    "completed_task_ids": ("completed_task_ids", ["t1", "t2", "t3"]),
    "failed_task_ids_removed": ("failed_task_ids", []),
    "active_task_id_removed": ("active_task_id", None),
    "active_task_id": ("active_task_id", "t9"),
    "pending_clarification_removed": ("pending_clarification", None),
    "clarification_answer": ("clarification_answer", {"choice": 2}),
}

INVALID_VALUES: dict[str, tuple[str, Callable[[Any], None]]] = {
    "unknown_phase": ("phase", lambda s: setattr(s, "phase", "NO_SUCH_PHASE")),
    "changed_created_at": ("created_at", lambda s: setattr(s, "created_at", s.created_at - timedelta(seconds=1))),
    "text_created_at": ("created_at", lambda s: setattr(s, "created_at", s.created_at.isoformat())),
    "naive_updated_at": ("updated_at", lambda s: setattr(s, "updated_at", s.updated_at.replace(tzinfo=None))),
    "missing_updated_at": ("updated_at", lambda s: setattr(s, "updated_at", None)),
    "negative_index": ("current_question_index", lambda s: setattr(s, "current_question_index", -1)),
    "too_large_index": ("current_question_index", lambda s: setattr(s, "current_question_index", 2**63)),
    "bool_index": ("current_question_index", lambda s: setattr(s, "current_question_index", True)),
    "empty_task_id": ("active_task_id", lambda s: setattr(s, "active_task_id", "")),
    "too_long_task_id": ("active_task_id", lambda s: setattr(s, "active_task_id", "x" * 256)),
    "control_character_in_task_id": ("active_task_id", lambda s: setattr(s, "active_task_id", "a\nb")),
    "surrogate_in_task_id": ("completed_task_ids[2]", lambda s: s.completed_task_ids.append("\ud800")),
    "integer_task_id": ("failed_task_ids[1]", lambda s: s.failed_task_ids.append(7)),
    "text_for_task_ids": ("completed_task_ids", lambda s: setattr(s, "completed_task_ids", "t1")),
    "missing_answers": ("answers", lambda s: setattr(s, "answers", None)),
    "list_for_answers": ("answers", lambda s: setattr(s, "answers", [1])),
    "text_for_concept": ("concept", lambda s: setattr(s, "concept", "text")),
    "missing_logs": ("logs", lambda s: setattr(s, "logs", None)),
    "tuple_for_errors": ("error_history", lambda s: setattr(s, "error_history", ())),
    "text_for_error": ("error_history[1]", lambda s: s.error_history.append("text")),
    "error_without_message": ("error_history[1]", lambda s: s.error_history.append({"message": "x"})),
    "text_for_version": ("version", lambda s: setattr(s, "version", "1")),
}
"""Paths, and functions that set an invalid value at the path."""


def round_tripped(session: Session) -> Session:
    """Return the session after conversion to JSON text and back."""
    return type(session).from_dict(json.loads(json.dumps(session.to_dict())))


class UpdateTests:
    """`update_session` and `modify_session`."""

    @pytest.mark.parametrize(("name", "value"), CHANGES.values(), ids=CHANGES)
    def test_update_of_one_field(self, repository: SessionRepository, name: str, value: Any) -> None:
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

    def test_update_sets_version_and_time_of_callers_session(self, repository: SessionRepository) -> None:
        session = repository.create_session()
        before = session.updated_at
        for version in (2, 3, 4):
            session.add_log("only a log, which does not change updated_at of the session itself")
            repository.update_session(session)
            after = stored(repository, session.session_id)
            assert session.version == after.version == version
            assert session.updated_at == after.updated_at > before
            before = session.updated_at

    def test_update_of_unchanged_session_writes_nothing(self, repository: SessionRepository) -> None:
        repository.create_session(full_session())
        for session in (
            stored(repository),
            round_tripped(stored(repository)),
            stored(repository).model_copy(deep=True),
        ):
            before = stored(repository)
            repository.update_session(session)
            assert session.version == 1
            assert_same(stored(repository), before)
            assert_same(session, before)

    def test_update_of_time_only_is_stored(self, repository: SessionRepository) -> None:
        session = repository.create_session(full_session())
        session.updated_at += timedelta(days=1)
        repository.update_session(session)
        assert stored(repository).updated_at == session.updated_at
        assert session.version == 2

    def test_stored_time_never_decreases(self, repository: SessionRepository) -> None:
        given = full_session()
        given.updated_at = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
        session = repository.create_session(given)
        session.update_phase(SessionPhase.IDEA)
        session.updated_at = datetime(1, 1, 1, tzinfo=UTC)
        repository.update_session(session)
        repository.append_error(SESSION_ID, "t", "m")
        repository.append_log(SESSION_ID, "l")
        assert session.updated_at == stored(repository).updated_at == given.updated_at

    def test_stale_update_writes_nothing(self, repository: SessionRepository) -> None:
        repository.create_session(full_session())
        first, second = stored(repository), stored(repository)
        first.update_phase(SessionPhase.FAILED)
        repository.update_session(first)
        second.update_phase(SessionPhase.COMPLETE)
        second.add_answer("late", 1)
        second.concept = {"late": True}
        second.add_error("late", "late")
        second.add_log("late")
        before = second.model_copy(deep=True)
        with pytest.raises(StaleSessionError) as caught:
            repository.update_session(second)
        assert (caught.value.session_id, caught.value.version, caught.value.stored_version) == (SESSION_ID, 1, 2)
        assert_same(stored(repository), first)
        assert_same(second, before)
        assert len(repository.list_errors(SESSION_ID)) == len(repository.list_logs(SESSION_ID)) == 1
        with pytest.raises(StaleSessionError):
            repository.update_session(second)

    def test_update_of_stale_unchanged_session_succeeds(self, repository: SessionRepository) -> None:
        repository.create_session(full_session())
        first, second = stored(repository), stored(repository)
        first.update_phase(SessionPhase.FAILED)
        repository.update_session(first)
        repository.update_session(second)
        assert_same(stored(repository), first)

    def test_update_of_deleted_session_raises_not_found(self, repository: SessionRepository) -> None:
        session = repository.create_session(full_session())
        late = round_tripped(session)
        repository.delete_session(SESSION_ID)
        for changed in (session, late):
            changed.add_answer("q", 1)
            with pytest.raises(SessionNotFoundError):
                repository.update_session(changed)
        assert repository.list_sessions() == []

    def test_update_of_other_incarnation_raises_stale(self, repository: SessionRepository) -> None:
        session = repository.create_session(full_session())
        late = round_tripped(session)
        repository.delete_session(SESSION_ID)
        repository.create_session(session_id=SESSION_ID)
        for changed in (session, late):
            changed.add_answer("q", 1)
            with pytest.raises(StaleSessionError) as caught:
                repository.update_session(changed)
            assert caught.value.version == caught.value.stored_version == 1
        assert stored(repository).answers == {}

    def test_update_after_round_trip_of_other_incarnation_raises_stale(self, repository: SessionRepository) -> None:
        repository.create_session(Session(session_id=SESSION_ID))
        late = round_tripped(stored(repository))
        repository.delete_session(SESSION_ID)
        repository.create_session(
            Session(session_id=SESSION_ID, created_at=late.created_at, updated_at=late.updated_at)
        )
        with pytest.raises(StaleSessionError):
            repository.update_session(late)

    def test_update_of_never_stored_session_creates_it(self, repository: SessionRepository) -> None:
        session = full_session()
        repository.update_session(session)
        assert session.version == 1
        assert_same(stored(repository), session)

    def test_update_of_version_without_baseline_is_rejected(self, repository: SessionRepository) -> None:
        repository.create_session(full_session())
        constructed = Session(session_id=SESSION_ID, version=1)
        fields = stored(repository).to_dict()
        del fields["stored"]
        for session in (constructed, Session.from_dict(fields)):
            with pytest.raises(InvalidSessionError):
                repository.update_session(session)
        assert stored(repository).version == 1

    def test_update_after_json_round_trip(self, repository: SessionRepository) -> None:
        repository.create_session(full_session())
        repository.append_error(SESSION_ID, "others", "meanwhile 1")
        session = stored(repository)
        session.add_error("mine", "before the round trip")
        session.add_log("before the round trip")
        session = round_tripped(session)
        repository.append_error(SESSION_ID, "others", "meanwhile 2")
        session.add_error("mine", "after the round trip")
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
        # after a second round trip, the list still lacks the other caller's entry, but its entries count as stored
        session = round_tripped(session)
        assert [entry.position for entry in session.error_history] == [1, 2, 4, 5]
        session.add_log("again")
        repository.update_session(session)
        assert len(repository.list_errors(SESSION_ID)) == 5
        assert len(repository.list_logs(SESSION_ID)) == 3

    def test_json_round_trip_keeps_omitted_counts(self, repository: SessionRepository) -> None:
        repository.create_session(full_session())
        repository.append_error(SESSION_ID, "t", "m")
        part = repository.get_session(SESSION_ID, recent=1)
        assert part is not None
        back = round_tripped(part)
        assert_same(back, part)
        assert (back.omitted_errors, back.omitted_logs) == (1, 0)
        back.add_error("t", "new")
        repository.update_session(back)
        assert [entry.position for entry in stored(repository).error_history] == [1, 2, 3]

    def test_stale_update_after_round_trip_raises_stale(self, repository: SessionRepository) -> None:
        session = round_tripped(repository.create_session(full_session()))
        repository.modify_session(SESSION_ID, lambda other: other.add_answer("q", 1))
        session.add_answer("q", 2)
        with pytest.raises(StaleSessionError):
            repository.update_session(session)
        assert stored(repository).answers["q"] == 1

    @pytest.mark.parametrize(("path", "set_invalid_value"), INVALID_VALUES.values(), ids=INVALID_VALUES)
    def test_invalid_value_is_rejected_with_its_path(
        self, repository: SessionRepository, path: str, set_invalid_value: Callable[[Session], None]
    ) -> None:
        repository.create_session(full_session())
        session = stored(repository)
        session.add_log("not to be written")
        set_invalid_value(session)
        with pytest.raises(InvalidSessionError) as caught:
            repository.update_session(session)
        assert caught.value.path == path
        assert isinstance(caught.value, ValueError)
        assert stored(repository).version == 1
        assert len(repository.list_logs(SESSION_ID)) == 1

    def test_times_are_converted_to_utc(self, repository: SessionRepository) -> None:
        session = Session(session_id=SESSION_ID)
        here = timezone(timedelta(hours=5, minutes=30))
        session.created_at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=here)
        repository.create_session(session)
        assert stored(repository).created_at == datetime(2026, 1, 1, 21, 34, 5, 678901, tzinfo=UTC)
        assert stored(repository).created_at.tzinfo is UTC
        session.add_log("and it can be updated still")
        repository.update_session(session)

    def test_modify_stores_the_change(self, repository: SessionRepository) -> None:
        repository.create_session(full_session())
        session = repository.modify_session(SESSION_ID, lambda session: session.update_phase(SessionPhase.EXECUTION))
        assert session.version == 2
        assert_same(stored(repository), session)

    def test_modify_retries_when_stale(self, repository: SessionRepository) -> None:
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

    def test_modify_raises_stale_after_last_attempt(self, repository: SessionRepository) -> None:
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

    def test_modify_writes_nothing_if_change_raises(self, repository: SessionRepository) -> None:
        repository.create_session(full_session())

        def change(session: Session) -> None:
            session.add_answer("half", 1)
            raise KeyError("the caller's own")

        with pytest.raises(KeyError, match="own"):
            repository.modify_session(SESSION_ID, change)
        assert stored(repository).version == 1

    @pytest.mark.parametrize("attempts", [0, -1, True, 1.5])
    def test_modify_rejects_invalid_attempts(self, repository: SessionRepository, attempts: Any) -> None:
        repository.create_session(session_id=SESSION_ID)
        with pytest.raises(InvalidArgumentError) as caught:
            repository.modify_session(SESSION_ID, lambda _: None, attempts=attempts)
        assert caught.value.argument == "attempts"

    def test_modify_of_session_deleted_meanwhile_raises_not_found(self, repository: SessionRepository) -> None:
        repository.create_session(session_id=UNKNOWN_ID)

        def change(session: Session) -> None:
            repository.delete_session(UNKNOWN_ID)
            session.add_answer("q", 1)

        with pytest.raises(SessionNotFoundError):
            repository.modify_session(UNKNOWN_ID, change)
        assert repository.list_sessions() == []
