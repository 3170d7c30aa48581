"""Contract tests of the log records of repository calls."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from vibeforge_sessions import InvalidArgumentError, InvalidSessionError, Session, SessionRepository, StaleSessionError
from vibeforge_sessions.testing.base import SESSION_ID, UNKNOWN_ID, RepositoryTests, stored

SECRET = "s3cret"  # noqa: S105 (no record may contain it)

NewRecords = Callable[[], list[dict[str, Any]]]
"""Function that returns the log records since its last call."""


class InstrumentationTests(RepositoryTests):
    """Each call writes one record with id, version and duration, and without data of the session."""

    @pytest.fixture
    def new_records(self, caplog: pytest.LogCaptureFixture) -> NewRecords:
        """Return a function that returns the log records since its last call."""
        caplog.set_level(logging.DEBUG, logger="vibeforge_sessions")

        def new_records() -> list[dict[str, Any]]:
            records = [vars(record) for record in caplog.records if record.name == "vibeforge_sessions"]
            caplog.clear()
            return records

        return new_records

    def test_each_call_is_one_log_record(self, repository: SessionRepository, new_records: NewRecords) -> None:
        session = repository.create_session(session_id=SESSION_ID)
        session.add_answer(SECRET, SECRET)
        repository.update_session(session)
        stored(repository)
        repository.append_error(SESSION_ID, SECRET, SECRET)
        repository.append_log(SESSION_ID, SECRET)
        repository.list_errors(SESSION_ID, task_id=SECRET)
        repository.list_logs(SESSION_ID)
        repository.list_sessions()
        repository.find_sessions()
        repository.modify_session(SESSION_ID, lambda session: session.add_log(SECRET))
        repository.delete_session(SESSION_ID)
        expected = [
            ("create_session", SESSION_ID, 1),
            ("update_session", SESSION_ID, 2),
            ("get_session", SESSION_ID, 2),
            ("append_error", SESSION_ID, None),
            ("append_log", SESSION_ID, None),
            ("list_errors", SESSION_ID, None),
            ("list_logs", SESSION_ID, None),
            ("list_sessions", None, None),
            ("find_sessions", None, None),
            ("modify_session", SESSION_ID, 3),
            ("delete_session", SESSION_ID, None),
        ]
        records = new_records()
        assert [(each["call"], each["session_id"], each["version"]) for each in records] == expected
        assert {(each["attempts"], each["outcome"], each["levelname"]) for each in records} == {(1, "ok", "DEBUG")}
        assert all(isinstance(each["duration"], float) and each["duration"] >= 0 for each in records)
        assert SECRET not in str(records)

    def test_call_that_raises_is_reported(self, repository: SessionRepository, new_records: NewRecords) -> None:
        repository.create_session(session_id=SESSION_ID)
        old = stored(repository)
        repository.modify_session(SESSION_ID, lambda session: session.add_answer("q", 1))
        old.add_answer(SECRET, SECRET)
        new_records()
        with pytest.raises(StaleSessionError):
            repository.update_session(old)
        with pytest.raises(LookupError):
            repository.append_log(UNKNOWN_ID, SECRET)
        with pytest.raises(InvalidArgumentError):
            repository.get_session(f"{SECRET}\n{SECRET}")
        with pytest.raises(InvalidSessionError):
            repository.create_session(Session(session_id="invalid", answers={SECRET: {SECRET}}))
        records = new_records()
        assert [(each["call"], each["session_id"], each["outcome"]) for each in records] == [
            ("update_session", SESSION_ID, "StaleSessionError"),
            ("append_log", UNKNOWN_ID, "SessionNotFoundError"),
            ("get_session", None, "InvalidArgumentError"),  # an invalid id may contain secrets
            ("create_session", "invalid", "InvalidSessionError"),
        ]
        assert SECRET not in str(records)

    def test_each_retry_is_reported(self, repository: SessionRepository, new_records: NewRecords) -> None:
        repository.create_session(session_id=SESSION_ID)
        seen: list[Any] = []

        def change(session: Session) -> None:
            seen.append(session.version)
            if len(seen) < 3:
                other = stored(repository)
                other.add_answer("other", len(seen))
                repository.update_session(other)
            session.add_answer("mine", 1)

        new_records()
        repository.modify_session(SESSION_ID, change)
        records = new_records()
        retries = [each for each in records if each["levelname"] == "INFO"]
        assert [(each["call"], each["session_id"], each["attempts"], each["reason"]) for each in retries] == [
            ("modify_session", SESSION_ID, 2, "StaleSessionError"),
            ("modify_session", SESSION_ID, 3, "StaleSessionError"),
        ]
        last = records[-1]
        assert (last["call"], last["version"], last["attempts"], last["outcome"]) == ("modify_session", 4, 3, "ok")
