"""Contract tests of the error history and the logs."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from vibeforge_sessions import (
    ErrorEntry,
    InvalidArgumentError,
    InvalidSessionError,
    Session,
    SessionPhase,
    SessionRepository,
)
from vibeforge_sessions.testing.base import SESSION_ID, NewRepository, assert_same, full_session, stored

LINE = re.compile(r"\[(?P<time>[^]]+)\] (?P<message>.*)", re.DOTALL)


class HistoryTests:
    """`append_error`, `append_log`, `list_errors`, `list_logs`, and the histories in sessions."""

    def test_entries_have_order_phase_and_time(self, repository: SessionRepository) -> None:
        session = repository.create_session(session_id=SESSION_ID)
        session.add_error("t1", "in the default phase")
        session.add_error("t2", "in another phase", phase=SessionPhase.VERIFICATION)
        session.update_phase(SessionPhase.EXECUTION)
        session.add_error("t3", "in the current phase")
        repository.update_session(session)
        repository.append_error(SESSION_ID, "t4", "in the stored phase")
        repository.append_error(SESSION_ID, "t5", "in another phase", SessionPhase.FAILED)
        entries = stored(repository).error_history
        assert [entry.task_id for entry in entries] == ["t1", "t2", "t3", "t4", "t5"]
        assert [entry.phase for entry in entries] == [
            SessionPhase.QUESTIONNAIRE,
            SessionPhase.VERIFICATION,
            SessionPhase.EXECUTION,
            SessionPhase.EXECUTION,
            SessionPhase.FAILED,
        ]
        assert all(isinstance(entry.phase, SessionPhase) for entry in entries)
        assert [entry.position for entry in entries] == [1, 2, 3, 4, 5]
        assert all(entry.timestamp.tzinfo is UTC for entry in entries)
        assert [entry.timestamp for entry in entries] == sorted(entry.timestamp for entry in entries)
        assert entries == repository.list_errors(SESSION_ID)
        assert [entry.position for entry in repository.list_errors(SESSION_ID)] == [1, 2, 3, 4, 5]

    def test_entry_is_a_mapping(self, repository: SessionRepository) -> None:
        repository.create_session(session_id=SESSION_ID)
        returned = repository.append_error(SESSION_ID, "t", "m")
        (entry,) = stored(repository).error_history
        assert returned == entry == dict(entry)
        assert dict(entry) == {
            "timestamp": entry.timestamp.isoformat(),
            "task_id": "t",
            "error_message": "m",
            "phase": "QUESTIONNAIRE",
        }
        assert "timestamp" in entry
        assert "position" not in entry
        assert (returned.position, entry.position) == (1, 1)

    def test_log_line_starts_with_time(self, repository: SessionRepository) -> None:
        session = repository.create_session(session_id=SESSION_ID)
        session.add_log("first")
        repository.update_session(session)
        returned = repository.append_log(SESSION_ID, "second")
        lines = stored(repository).logs
        assert lines == repository.list_logs(SESSION_ID)
        assert lines[1] == returned
        for line, message in zip(lines, ("first", "second"), strict=True):
            match = LINE.fullmatch(line)
            assert match is not None
            assert match["message"] == message
            assert datetime.fromisoformat(match["time"]).tzinfo == UTC

    def test_append_changes_time_and_not_version(self, repository: SessionRepository) -> None:
        repository.create_session(session_id=SESSION_ID)
        for append in (repository.append_error, lambda s, _, m: repository.append_log(s, m)):
            before = stored(repository)
            append(SESSION_ID, "t", "m")
            after = stored(repository)
            assert after.version == before.version
            assert after.updated_at > before.updated_at
            assert after.created_at == before.created_at

    def test_appends_do_not_conflict_with_update(self, repository: SessionRepository) -> None:
        session = repository.create_session(session_id=SESSION_ID)
        repository.append_error(SESSION_ID, "worker 1", "m")
        repository.append_log(SESSION_ID, "worker 2")
        session.update_phase(SessionPhase.EXECUTION)
        mine = session.add_error("caller", "m")
        session.add_log("caller")
        errors, logs = session.error_history, session.logs
        repository.append_error(SESSION_ID, "worker 2", "m")
        repository.update_session(session)
        # the caller's lists are still the same objects, without the workers' entries; their entries count as stored
        assert session.error_history is errors
        assert session.logs is logs
        assert errors == [mine]
        assert errors[0].position == 3
        assert mine.position is None
        assert len(logs) == 1
        after = stored(repository)
        assert [entry.task_id for entry in after.error_history] == ["worker 1", "worker 2", "caller"]
        assert [line.split("] ")[1] for line in after.logs] == ["worker 2", "caller"]
        session.add_error("caller", "again")
        repository.update_session(session)
        assert [entry.position for entry in session.error_history] == [3, 4]
        assert [entry.position for entry in stored(repository).error_history] == [1, 2, 3, 4]

    @pytest.mark.parametrize(
        "tamper",
        [
            lambda s: s.error_history.pop(),
            lambda s: s.error_history.pop(0),
            lambda s: s.error_history.clear(),
            lambda s: s.error_history.reverse(),
            lambda s: s.error_history.insert(0, ErrorEntry(s.created_at, "t", "new", "IDEA")),
            lambda s: s.error_history.__setitem__(0, ErrorEntry(s.created_at, "t", "changed", "IDEA")),
            lambda s: setattr(s, "error_history", []),
            lambda s: s.logs.pop(),
            lambda s: s.logs.insert(0, "new"),
            lambda s: s.logs.__setitem__(1, "changed"),
            lambda s: setattr(s, "logs", []),
        ],
        ids=[
            "remove_last_error",
            "remove_first_error",
            "clear_errors",
            "reverse_errors",
            "insert_error",
            "replace_error",
            "assign_no_errors",
            "remove_log",
            "insert_log",
            "replace_log",
            "assign_no_logs",
        ],
    )
    @pytest.mark.parametrize("round_trip", [False, True], ids=["direct", "round_trip"])
    def test_change_of_stored_entries_is_rejected(
        self, repository: SessionRepository, tamper: Callable[[Session], object], round_trip: bool
    ) -> None:
        repository.create_session(full_session())
        repository.append_error(SESSION_ID, "t4", "second")
        repository.append_log(SESSION_ID, "second")
        session = stored(repository)
        before = stored(repository)
        session.add_answer("q", 1)
        if round_trip:
            fields = session.to_dict()
            session = Session.from_dict({**fields, "stored": None} | {"stored": fields["stored"]})
        tamper(session)
        if round_trip:
            session = Session.from_dict(session.to_dict())
        with pytest.raises(InvalidSessionError) as caught:
            repository.update_session(session)
        assert caught.value.path in {"error_history", "logs"}
        assert_same(stored(repository), before)

    def test_change_of_stored_entries_in_dict_is_rejected(self, repository: SessionRepository) -> None:
        session = repository.create_session(full_session())
        before = stored(repository)
        for name, entry in (("error_history", None), ("logs", None), ("error_history", 0), ("logs", 0)):
            fields = session.to_dict()
            if entry is None:
                fields[name] = []
            elif name == "logs":
                fields[name][0] = "changed"
            else:
                fields[name][0]["error_message"] = "changed"
            changed = Session.from_dict(fields)
            changed.add_answer("q", 1)
            with pytest.raises(InvalidSessionError):
                repository.update_session(changed)
        assert_same(stored(repository), before)

    @pytest.mark.parametrize(
        ("recent", "messages"),
        [(0, []), (1, ["4"]), (2, ["3", "4"]), (4, list("1234")), (99, list("1234")), (None, list("1234"))],
    )
    def test_get_with_recent(self, repository: SessionRepository, recent: int | None, messages: list[str]) -> None:
        repository.create_session(session_id=SESSION_ID)
        for message in "1234":
            repository.append_error(SESSION_ID, "t", message)
            repository.append_log(SESSION_ID, message)
        session = repository.get_session(SESSION_ID, recent=recent)
        assert session is not None
        assert [entry.error_message for entry in session.error_history] == messages
        assert [line.split("] ")[1] for line in session.logs] == messages
        assert session.omitted_errors == session.omitted_logs == 4 - len(messages)
        session.add_error("t", "5")
        session.add_log("5")
        repository.update_session(session)
        assert [entry.position for entry in session.error_history] == [*map(int, messages), 5]
        assert [entry.error_message for entry in stored(repository).error_history] == list("12345")
        assert [line.split("] ")[1] for line in stored(repository).logs] == list("12345")

    def test_omitted_entries_stay_omitted(self, new_repository: NewRepository) -> None:
        repository, elsewhere = new_repository(), new_repository()
        repository.create_session(session_id=SESSION_ID)
        for message in "123":
            repository.append_error(SESSION_ID, "t", message)
        for message in "12345":
            repository.append_log(SESSION_ID, message)
        session = repository.get_session(SESSION_ID, recent=1)
        assert session is not None
        for part in (session, Session.from_dict(session.to_dict())):
            assert (part.omitted_errors, part.omitted_logs) == (2, 4)
        session.add_error("t", "4")
        repository.update_session(session)
        assert (session.omitted_errors, session.omitted_logs) == (2, 4)
        session = repository.get_session(SESSION_ID, recent=4)  # reads all errors, but not all logs
        assert session is not None
        assert (session.omitted_errors, session.omitted_logs) == (0, 1)
        with pytest.raises(InvalidSessionError):
            elsewhere.create_session(session)

    @pytest.mark.parametrize("recent", [-1, True, 1.0, "1"])
    def test_invalid_recent_is_rejected(self, repository: SessionRepository, recent: Any) -> None:
        repository.create_session(session_id=SESSION_ID)
        with pytest.raises(InvalidArgumentError) as caught:
            repository.get_session(SESSION_ID, recent=recent)
        assert caught.value.argument == "recent"

    def test_list_errors_returns_slices(self, repository: SessionRepository) -> None:
        repository.create_session(session_id=SESSION_ID)
        for number in range(1, 7):
            phase = SessionPhase.EXECUTION if number % 3 else SessionPhase.VERIFICATION
            repository.append_error(SESSION_ID, "odd" if number % 2 else "even", f"m{number}", phase)

        def positions(**arguments: Any) -> list[int | None]:
            return [entry.position for entry in repository.list_errors(SESSION_ID, **arguments)]

        assert positions() == positions(after=0, limit=6) == positions(limit=99) == [1, 2, 3, 4, 5, 6]
        assert positions(limit=1) == [1]
        assert positions(after=2, limit=2) == [3, 4]
        assert positions(after=5) == [6]
        assert positions(after=6) == positions(after=2**63 - 1) == []
        assert positions(task_id="odd") == [1, 3, 5]
        assert positions(task_id="odd", after=1, limit=1) == [3]
        assert positions(phase="VERIFICATION") == positions(phase=SessionPhase.VERIFICATION) == [3, 6]
        assert positions(task_id="even", phase="VERIFICATION") == [6]
        assert positions(task_id="even", phase="VERIFICATION", after=6) == []
        assert (
            positions(task_id="") == positions(phase="") == positions(task_id="unknown") == positions(phase="\0") == []
        )
        assert positions(task_id="ODD") == positions(task_id="odd ") == positions(task_id="\ud800" * 999) == []

    def test_list_logs_returns_slices(self, repository: SessionRepository) -> None:
        repository.create_session(session_id=SESSION_ID)
        lines = [repository.append_log(SESSION_ID, str(number)) for number in range(5)]
        assert repository.list_logs(SESSION_ID) == lines
        assert repository.list_logs(SESSION_ID, limit=1) == lines[:1]
        assert repository.list_logs(SESSION_ID, after=2, limit=2) == lines[2:4]
        assert repository.list_logs(SESSION_ID, after=4) == lines[4:]
        assert repository.list_logs(SESSION_ID, after=5) == repository.list_logs(SESSION_ID, after=2**63 - 1) == []

    @pytest.mark.parametrize(
        "arguments",
        [
            {"limit": 0},
            {"limit": -1},
            {"limit": True},
            {"limit": 2**63},
            {"after": -1},
            {"after": 2**63},
            {"after": None},
        ],
    )
    def test_invalid_slice_is_rejected(self, repository: SessionRepository, arguments: dict[str, Any]) -> None:
        repository.create_session(session_id=SESSION_ID)
        for call in (repository.list_errors, repository.list_logs):
            with pytest.raises(InvalidArgumentError) as caught:
                call(SESSION_ID, **arguments)
            assert caught.value.argument in arguments

    def test_long_history(self, repository: SessionRepository) -> None:
        session = repository.create_session(session_id=SESSION_ID)
        for number in range(2_999):
            session.add_error(f"t{number % 7}", f"error {number}")
        repository.update_session(session)
        repository.append_error(SESSION_ID, "t", "the last")
        after = stored(repository)
        assert len(after.error_history) == 3_000
        assert [entry.position for entry in after.error_history] == list(range(1, 3_001))
        assert after.error_history[:-1] == session.error_history
        recent = repository.get_session(SESSION_ID, recent=2)
        assert recent is not None
        assert [entry.error_message for entry in recent.error_history] == ["error 2998", "the last"]
        assert recent.omitted_errors == 2_998
        assert [entry.position for entry in repository.list_errors(SESSION_ID, after=2_990, limit=3)] == [
            2991,
            2992,
            2993,
        ]
        assert repository.find_sessions().items[0].error_count == 3_000
        after.add_error("t", "one more")
        repository.update_session(after)
        assert repository.list_errors(SESSION_ID, after=3_000)[0].error_message == "one more"
