"""Contract tests of creating, reading and deleting sessions, of ids, and of copies."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC
from typing import Any

import pytest

from vibeforge_sessions import (
    InvalidArgumentError,
    InvalidSessionError,
    Session,
    SessionExistsError,
    SessionNotFoundError,
    SessionPhase,
    SessionRepository,
    StaleSessionError,
)
from vibeforge_sessions.repository.serialization import Record
from vibeforge_sessions.testing.base import (
    SESSION_ID,
    UNKNOWN_ID,
    NewRepository,
    assert_same,
    full_session,
    stored,
)

INVALID_IDS = {
    "empty": "",
    "space": " ",
    "inner_space": "a b",
    "slash": "a/b",
    "umlaut": "ä",
    "umlaut_first": "äbc",
    "trailing_space": "abc ",
    "leading_space": " abc",
    "newline": "a\n",
    "nul": "\0",
    "surrogate": "\ud800",
    "too_long": "x" * 65,
    "single_quote": "a'b",
    "double_quote": 'a"b',
    "percent": "a%",
    "none": None,
    "integer": 7,
    "bytes": b"a",
}
VALID_IDS = {
    "letter": "a",
    "maximum_length": "x" * 64,
    "all_kinds_of_characters": "A-Z_a.z:0~9",
    "digit": "0",
    "hyphen": "-",
    "dots": "..",
}


class SessionTests:
    """`create_session`, `get_session` and `delete_session`."""

    def test_new_session_has_initial_values(self, repository: SessionRepository) -> None:
        for session in (created := repository.create_session(), stored(repository, created.session_id)):
            assert str(uuid.UUID(session.session_id)) == session.session_id
            assert uuid.UUID(session.session_id).version == 4
            assert session.phase is SessionPhase.QUESTIONNAIRE
            assert session.created_at.tzinfo is UTC
            assert session.updated_at.tzinfo is UTC
            assert session.created_at <= session.updated_at
            assert session.current_question_index == 0
            assert session.answers == {}
            assert session.completed_task_ids == session.failed_task_ids == session.logs == session.error_history == []
            for name in ("intent_profile", "build_spec", "concept", "task_graph", "active_task_id"):
                assert getattr(session, name) is None
            assert session.pending_clarification is None
            assert session.clarification_answer is None
            assert session.version == 1
            assert session.omitted_errors == session.omitted_logs == 0

    @pytest.mark.parametrize("session_id", VALID_IDS.values(), ids=VALID_IDS)
    def test_create_with_valid_id(self, repository: SessionRepository, session_id: str) -> None:
        assert repository.create_session(session_id=session_id).session_id == session_id
        assert stored(repository, session_id).session_id == session_id

    def test_ids_are_case_sensitive(self, repository: SessionRepository) -> None:
        for session_id in ("abc", "ABC", "Abc"):
            repository.create_session(Session(session_id=session_id, answers={"id": session_id}))
        assert [stored(repository, session_id).answers["id"] for session_id in ("abc", "ABC", "Abc")] == [
            "abc",
            "ABC",
            "Abc",
        ]
        assert repository.delete_session("ABC")
        assert repository.list_sessions() == ["abc", "Abc"]

    @pytest.mark.parametrize("session_id", INVALID_IDS.values(), ids=INVALID_IDS)
    def test_invalid_id_argument_is_rejected(self, repository: SessionRepository, session_id: Any) -> None:
        calls: list[Callable[[], object]] = [
            lambda: repository.get_session(session_id),
            lambda: repository.delete_session(session_id),
            lambda: repository.append_error(session_id, "t", "m"),
            lambda: repository.append_log(session_id, "m"),
            lambda: repository.list_errors(session_id),
            lambda: repository.list_logs(session_id),
            lambda: repository.modify_session(session_id, lambda _: None),
            lambda: repository.hold_session(session_id),
            lambda: repository.release_session(session_id),
            lambda: repository.get_record(session_id),
        ]
        if session_id is not None:
            calls.append(lambda: repository.create_session(session_id=session_id))
        for call in calls:
            with pytest.raises(InvalidArgumentError) as caught:
                call()
            assert caught.value.argument == "session_id"
        assert repository.list_sessions() == []

    @pytest.mark.parametrize("session_id", INVALID_IDS.values(), ids=INVALID_IDS)
    def test_invalid_id_in_session_is_rejected(self, repository: SessionRepository, session_id: Any) -> None:
        session = Session()
        session.session_id = session_id
        for call in (repository.update_session, repository.create_session):
            with pytest.raises(InvalidSessionError) as caught:
                call(session)
            assert caught.value.path == "session_id"
        assert repository.list_sessions() == []

    def test_unknown_id_in_every_call(self, repository: SessionRepository) -> None:
        assert repository.get_session(UNKNOWN_ID) is None
        assert repository.get_session(UNKNOWN_ID, recent=1) is None
        assert repository.delete_session(UNKNOWN_ID) is False
        for call in (
            lambda: repository.append_error(UNKNOWN_ID, "t", "m"),
            lambda: repository.append_log(UNKNOWN_ID, "m"),
            lambda: repository.list_errors(UNKNOWN_ID),
            lambda: repository.list_errors(UNKNOWN_ID, task_id="t", phase="EXECUTION"),
            lambda: repository.list_logs(UNKNOWN_ID),
            lambda: repository.modify_session(UNKNOWN_ID, lambda _: None),
        ):
            with pytest.raises(SessionNotFoundError) as caught:
                call()
            assert caught.value.session_id == UNKNOWN_ID
            assert isinstance(caught.value, LookupError)
        assert repository.list_sessions() == []

    def test_create_stores_given_session_and_marks_it_as_stored(self, repository: SessionRepository) -> None:
        given = full_session()
        returned = repository.create_session(given)
        assert given.version == returned.version == 1
        assert_same(returned, given)
        assert_same(stored(repository), given)
        assert returned is not given
        given.add_log("more")
        repository.update_session(given)
        assert stored(repository).logs == given.logs

    def test_create_keeps_times_of_given_session(self, repository: SessionRepository) -> None:
        given = full_session()
        created_at, updated_at = given.created_at, given.updated_at
        repository.create_session(given)
        session = stored(repository)
        assert (session.created_at, session.updated_at) == (created_at, updated_at)

    def test_create_with_existing_id_raises_exists(self, repository: SessionRepository) -> None:
        first = repository.create_session(full_session())
        second = Session(session_id=SESSION_ID)
        second.add_log("the second one's")
        for call in (
            lambda: repository.create_session(session_id=SESSION_ID),
            lambda: repository.create_session(second),
            lambda: repository.update_session(second),
            lambda: repository.create_session(first),
        ):
            with pytest.raises(SessionExistsError) as caught:
                call()
            assert caught.value.session_id == SESSION_ID
        assert second.version == 0
        assert_same(stored(repository), first)
        assert len(repository.list_logs(SESSION_ID)) == 1

    def test_create_rejects_session_and_id_together(self, repository: SessionRepository) -> None:
        with pytest.raises(InvalidArgumentError) as caught:
            repository.create_session(Session(), session_id="x")
        assert caught.value.argument == "session_id"
        assert repository.list_sessions() == []

    @pytest.mark.parametrize("thing", [{}, "session", 7, Session], ids=["dict", "text", "integer", "class"])
    def test_other_objects_than_sessions_are_rejected(self, repository: SessionRepository, thing: Any) -> None:
        for call in (repository.create_session, repository.update_session):
            with pytest.raises(InvalidArgumentError) as caught:
                call(thing)
            assert caught.value.argument == "session"
        with pytest.raises(InvalidArgumentError):
            repository.update_session(None)  # type: ignore[arg-type]

    def test_delete_removes_session_and_histories(self, repository: SessionRepository) -> None:
        repository.create_session(full_session())
        other = repository.create_session(full_session("other"))
        assert repository.delete_session(SESSION_ID) is True
        assert repository.get_session(SESSION_ID) is None
        assert repository.delete_session(SESSION_ID) is False
        assert repository.list_sessions() == ["other"]
        repository.create_session(session_id=SESSION_ID)
        assert repository.list_errors(SESSION_ID) == []
        assert repository.list_logs(SESSION_ID) == []
        assert repository.append_error(SESSION_ID, "t", "m").position == 1
        assert_same(stored(repository, "other"), other)

    def test_sessions_are_independent(self, repository: SessionRepository) -> None:
        one, two = repository.create_session(session_id="one"), repository.create_session(session_id="two")
        one.add_answer("q", 1)
        repository.update_session(one)
        repository.append_error("one", "t", "m")
        repository.append_log("two", "l")
        assert stored(repository, "two").answers == {}
        assert repository.list_errors("two") == []
        assert repository.list_logs("one") == []
        assert stored(repository, "two").version == two.version

    def test_repositories_are_independent(self, new_repository: NewRepository) -> None:
        one, two = new_repository(), new_repository()
        session = one.create_session(session_id=SESSION_ID)
        assert two.get_session(SESSION_ID) is None
        assert two.list_sessions() == []
        session.add_answer("q", 1)
        # StaleSessionError if `one` has joined a transaction of the caller that has not been committed
        with pytest.raises((SessionNotFoundError, StaleSessionError)):
            two.update_session(session)
        two.create_session(session_id=SESSION_ID)
        with pytest.raises(StaleSessionError):
            two.update_session(session)
        assert stored(two).answers == {}

    def test_stored_session_can_be_created_in_another_repository(self, new_repository: NewRepository) -> None:
        one, two = new_repository(), new_repository()
        one.create_session(full_session())
        one.append_error(SESSION_ID, "t9", "later")
        moved = stored(one)
        moved.add_answer("q", 1)
        two.create_session(moved)
        assert moved.version == 1
        assert_same(stored(two), moved)
        assert [entry.position for entry in stored(two).error_history] == [1, 2]

    def test_create_without_older_entries_is_rejected(self, new_repository: NewRepository) -> None:
        one, two = new_repository(), new_repository()
        one.create_session(full_session())
        part = one.get_session(SESSION_ID, recent=0)
        assert part is not None
        with pytest.raises(InvalidSessionError):
            two.create_session(part)
        assert two.list_sessions() == []

    def test_stored_data_is_independent_of_given_objects(self, repository: SessionRepository) -> None:
        given = full_session()
        repository.create_session(given)
        before = stored(repository)
        _change_in_place(given)
        assert_same(stored(repository), before)
        after = stored(repository)
        after.add_answer("new", {"deep": []})
        repository.update_session(after)
        before = stored(repository)
        _change_in_place(after)
        assert_same(stored(repository), before)

    def test_stored_data_is_independent_of_returned_objects(self, repository: SessionRepository) -> None:
        given = full_session()
        returned = repository.create_session(given)
        before = stored(repository)
        _change_in_place(returned)
        assert_same(given, before)
        _change_in_place(stored(repository))
        modified = repository.modify_session(SESSION_ID, lambda session: session.add_answer("new", {"deep": []}))
        before = stored(repository)
        _change_in_place(modified)
        for answer in (
            repository.list_sessions(),
            repository.list_errors(SESSION_ID),
            repository.list_logs(SESSION_ID),
        ):
            answer.clear()
        assert_same(stored(repository), before)
        assert repository.list_sessions() == [SESSION_ID]
        assert len(repository.list_errors(SESSION_ID)) == len(repository.list_logs(SESSION_ID)) == 1

    def test_with_block_and_second_close(self, new_repository: NewRepository) -> None:
        with new_repository() as repository:
            repository.create_session()
        repository.close()

    def test_incomplete_implementation_cannot_be_instantiated(self) -> None:
        class Incomplete(SessionRepository):
            def delete_session(self, session_id: str, *, unchanged_since: Record | None = None) -> bool:
                return False

        with pytest.raises(TypeError, match="abstract"):
            Incomplete()  # type: ignore[abstract]


def _change_in_place(session: Session) -> None:
    """Change every value of a session in place."""
    session.answers["changed"] = True
    session.answers["budget"][0] = "changed"
    for name in ("intent_profile", "build_spec", "concept", "task_graph", "pending_clarification"):
        getattr(session, name)["changed"] = True
    session.task_graph["tasks"][0]["needs"].append("changed")  # type: ignore[index]
    session.completed_task_ids.clear()
    session.failed_task_ids.append("changed")
    session.logs.clear()
    session.error_history.clear()
    session.phase = SessionPhase.FAILED
    session.active_task_id = None
