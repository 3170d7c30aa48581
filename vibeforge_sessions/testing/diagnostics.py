"""Contract tests of diagnostics, which are never rejected."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from vibeforge_sessions import ErrorEntry, Session, SessionPhase, SessionRepository
from vibeforge_sessions.testing.base import SESSION_ID, assert_same, stored

DIAGNOSTICS = {
    "empty": ("", ""),
    "ascii": ("plain", "plain"),
    "nul": ("nul \0 byte", "nul ␀ byte"),
    "lone_surrogates": ("lone \ud800 and \udfff", "lone � and �"),
    "surrogate_pair": ("pair \ud83d\ude00", "pair ��"),
    "unicode": ("é ☃ 😀 \u202e \x1b[31m \r\n\t", "é ☃ 😀 \u202e \x1b[31m \r\n\t"),
    "sql": ("'; DROP TABLE vibeforge_sessions; --", "'; DROP TABLE vibeforge_sessions; --"),
    "placeholders": ("%s %(x)s :name {0} \\ \\n", "%s %(x)s :name {0} \\ \\n"),
    "spaces": (" spaces ", " spaces "),
    "64_kilobytes": ("x" * 65_536, "x" * 65_536),
    "6_megabytes": ("☃" * 2_000_000, "☃" * 2_000_000),
}
"""Messages, and the same messages as they are stored."""

TASK_IDS = {
    "ascii": ("t", "t"),
    "control_characters": ("a\nb\0c\x7fd\x85e\ud800", "a␊b␀c␡d�e�"),
    "too_long": ("x" * 300, "x" * 255),
    "empty": ("", "�"),
    "trailing_space": ("t ", "t "),
    "maximum_length": ("😀" * 255, "😀" * 255),
}
"""Task ids, and the same ids as they are stored."""


class DiagnosticTests:
    """Unstorable characters in error messages, log lines and task ids of errors are replaced with visible ones."""

    @pytest.mark.parametrize(("message", "expected"), DIAGNOSTICS.values(), ids=DIAGNOSTICS)
    def test_any_message_is_stored(self, repository: SessionRepository, message: str, expected: str) -> None:
        session = repository.create_session(session_id=SESSION_ID)
        session.add_error("t", message)
        session.add_log(message)
        repository.update_session(session)
        repository.append_error(SESSION_ID, "t", message)
        repository.append_log(SESSION_ID, message)
        after = stored(repository)
        assert [entry.error_message for entry in after.error_history] == [expected, expected]
        assert [line.split("] ", 1)[1] for line in after.logs] == [expected, expected]
        assert after.error_history == repository.list_errors(SESSION_ID)

    @pytest.mark.parametrize(("task_id", "expected"), TASK_IDS.values(), ids=TASK_IDS)
    def test_any_task_id_of_an_error_is_stored(
        self, repository: SessionRepository, task_id: str, expected: str
    ) -> None:
        session = repository.create_session(session_id=SESSION_ID)
        assert session.add_error(task_id, "m").task_id == expected
        repository.update_session(session)
        assert repository.append_error(SESSION_ID, task_id, "m").task_id == expected
        assert [entry.task_id for entry in stored(repository).error_history] == [expected, expected]
        assert len(repository.list_errors(SESSION_ID, task_id=task_id)) == 2

    def test_unknown_phase_of_an_error_is_stored_as_text(self, repository: SessionRepository) -> None:
        repository.create_session(session_id=SESSION_ID)
        assert repository.append_error(SESSION_ID, "t", "m", "DEPLOYMENT").phase == "DEPLOYMENT"
        assert repository.append_error(SESSION_ID, "t", "m", "EXECUTION").phase is SessionPhase.EXECUTION
        assert repository.append_error(SESSION_ID, "t", "m", "x\0" * 40).phase == "x␀" * 32
        session = stored(repository)
        assert [entry.phase for entry in session.error_history] == ["DEPLOYMENT", "EXECUTION", "x␀" * 32]
        session.add_error("t", "m", "DEPLOYMENT")
        repository.update_session(session)
        assert [entry.position for entry in repository.list_errors(SESSION_ID, phase="DEPLOYMENT")] == [1, 4]

    def test_entries_added_to_lists_are_normalized(self, repository: SessionRepository) -> None:
        session = Session(session_id=SESSION_ID)
        at = datetime(2026, 1, 2, tzinfo=UTC)
        session.logs += ["a\0b", "\udcff"]
        session.error_history.append(ErrorEntry(at, "a\nb", "c\0d", SessionPhase.IDEA))
        old: Any = {"task_id": "t", "error_message": "old", "timestamp": at.isoformat(), "phase": "IDEA"}
        session.error_history.append(old)
        repository.create_session(session)
        session.logs.append("c\0")
        nameless: Any = {"task_id": "", "error_message": "\ud800"}
        session.error_history.append(nameless)
        repository.update_session(session)
        after = stored(repository)
        assert after.logs == ["a␀b", "�", "c␀"]
        assert [entry.task_id for entry in after.error_history] == ["a␊b", "t", "�"]
        assert [entry.error_message for entry in after.error_history] == ["c␀d", "old", "�"]
        assert [entry.timestamp for entry in after.error_history[:2]] == [at, at]
        assert_same(session, after)

    def test_entry_object_added_to_list_is_normalized(self, repository: SessionRepository) -> None:
        session = Session(session_id=SESSION_ID)
        elsewhere = datetime(2026, 1, 2, 3, tzinfo=timezone(timedelta(hours=2)))
        session.error_history.append(ErrorEntry(elsewhere, SessionPhase.IDEA, "m", "EXECUTION"))
        session.error_history.append(ErrorEntry(elsewhere, "t", "m", "p\0" * 50))
        returned = repository.create_session(session)
        assert_same(returned, stored(repository))
        first, second = returned.error_history
        assert first.timestamp.tzinfo is UTC
        assert first.timestamp.hour == 1
        assert (type(first.task_id), first.phase, second.phase) == (str, SessionPhase.EXECUTION, "p␀" * 32)
        assert isinstance(first.phase, SessionPhase)
        assert repository.list_errors(SESSION_ID, phase="p\0" * 50) == [second]
