"""Contract tests of holds, records, conditional deletion and restore."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from vibeforge_sessions import (
    ErrorEntry,
    InvalidArgumentError,
    InvalidSessionError,
    Session,
    SessionExistsError,
    SessionNotFoundError,
    SessionRepository,
    StaleSessionError,
)
from vibeforge_sessions.repository.serialization import Record
from vibeforge_sessions.testing.base import (
    SESSION_ID,
    UNKNOWN_ID,
    NewRepository,
    RepositoryTests,
    assert_same,
    full_session,
    stored,
)

LONG_AGO = datetime(2001, 2, 3, 4, 5, 6, 789, tzinfo=UTC)


def record_of(repository: SessionRepository, session_id: str = SESSION_ID) -> Record:
    """Return the stored record, which must exist."""
    record = repository.get_record(session_id)
    assert record is not None
    return record


def history_of(repository: SessionRepository) -> tuple[list[ErrorEntry], list[str]]:
    """Return all errors and all log lines."""
    return repository.list_errors(SESSION_ID, limit=10_000), repository.list_logs(SESSION_ID, limit=10_000)


def old_record(repository: SessionRepository, entries: int = 3) -> tuple[Record, list[ErrorEntry], list[str]]:
    """Return the record and histories of an old session with a high version, which is no longer stored.

    :param entries: number of errors and of log lines that are added.
    """
    session = full_session()
    session.error_history += [ErrorEntry(LONG_AGO, "t1", f"it broke {n}", session.phase) for n in range(entries)]
    session.logs += [f"line {number}" for number in range(entries)]
    repository.create_session(session)
    record = dataclasses.replace(
        record_of(repository), version=41, created_at=LONG_AGO, updated_at=LONG_AGO + timedelta(days=1)
    )
    errors, logs = history_of(repository)
    assert repository.delete_session(SESSION_ID)
    return record, errors, logs


def without_write_id(record: Record) -> Record:
    """Return a copy of the record without its write id, which differs after a restore."""
    return dataclasses.replace(record, write_id="")


class HoldAndRestoreTests(RepositoryTests):
    """`hold_session`, `release_session`, `get_record`, `restore_record` and conditional `delete_session`."""

    def test_get_record_returns_stored_data(self, repository: SessionRepository) -> None:
        session = full_session()
        repository.create_session(session)
        record = record_of(repository)
        assert record.session_id == SESSION_ID
        assert (record.created_at, record.updated_at, record.version) == (session.created_at, session.updated_at, 1)
        assert record.counts == (1, 1)
        assert record.held_at is None
        assert record.content.phase == session.phase
        assert record.content.documents["build_spec"] == '{"stack":"vite-react"}'
        assert repository.get_record(UNKNOWN_ID) is None

    def test_record_is_a_snapshot(self, repository: SessionRepository) -> None:
        repository.create_session(full_session())
        record = record_of(repository)
        before = record_of(repository)
        if isinstance(record.content.documents, dict):
            record.content.documents["build_spec"] = '"changed"'
        assert record_of(repository) == before
        repository.append_error(SESSION_ID, "t", "m")
        repository.modify_session(SESSION_ID, lambda session: session.add_answer("later", 1))
        assert before.counts == (1, 1)
        assert before.version == 1
        assert "later" not in str(before.content.documents["answers"])

    # --- holds ---

    def test_hold_changes_only_held_at(self, repository: SessionRepository) -> None:
        repository.create_session(full_session())
        before, session = record_of(repository), stored(repository)
        repository.hold_session(SESSION_ID)
        held = record_of(repository)
        assert held.held_at is not None
        assert dataclasses.replace(held, held_at=None) == before
        assert [item.held for item in repository.find_sessions().items] == [True]
        repository.hold_session(SESSION_ID)
        assert record_of(repository) == held
        session.add_answer("a", 1)
        repository.update_session(session)  # a hold does not make the session stale
        repository.append_log(SESSION_ID, "m")
        assert record_of(repository).held_at == held.held_at
        repository.release_session(SESSION_ID)
        repository.release_session(SESSION_ID)
        assert record_of(repository).held_at is None
        assert [item.held for item in repository.find_sessions().items] == [False]

    def test_hold_of_unknown_or_invalid_id_raises(self, repository: SessionRepository) -> None:
        for call in (repository.hold_session, repository.release_session):
            with pytest.raises(SessionNotFoundError):
                call(UNKNOWN_ID)
            with pytest.raises(InvalidArgumentError):
                call("no id")
        with pytest.raises(InvalidArgumentError):
            repository.get_record("no id")

    @pytest.mark.parametrize("thing", [{}, "record", 7], ids=["dict", "text", "integer"])
    def test_other_object_than_record_is_rejected(self, repository: SessionRepository, thing: Any) -> None:
        repository.create_session(session_id=SESSION_ID)
        record = record_of(repository)
        for call, argument in (
            (lambda: repository.delete_session(SESSION_ID, unchanged_since=thing), "unchanged_since"),
            (lambda: repository.restore_record(record, replacing=thing), "replacing"),
            (lambda: repository.restore_record(thing), "record"),
        ):
            with pytest.raises(InvalidArgumentError) as caught:
                call()
            assert caught.value.argument == argument
        assert record_of(repository) == record

    @pytest.mark.parametrize(("field", "value"), [("version", -1), ("error_count", "0"), ("write_id", None)])
    def test_invalid_value_in_unchanged_since_is_rejected(
        self, repository: SessionRepository, field: str, value: object
    ) -> None:
        repository.create_session(session_id=SESSION_ID)
        seen = dataclasses.replace(record_of(repository), **{field: value})  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError) as caught:
            repository.delete_session(SESSION_ID, unchanged_since=seen)
        assert caught.value.argument == f"unchanged_since.{field}"
        assert repository.list_sessions() == [SESSION_ID]

    # --- conditional deletion ---

    def test_conditional_delete_of_unchanged_session(self, repository: SessionRepository) -> None:
        repository.create_session(full_session())
        assert repository.delete_session(SESSION_ID, unchanged_since=record_of(repository))
        assert repository.get_session(SESSION_ID) is None
        repository.create_session(session_id=SESSION_ID)
        assert history_of(repository) == ([], [])

    @pytest.mark.parametrize("change", ["update", "error", "log", "incarnation", "hold", "delete"])
    def test_conditional_delete_of_changed_session_does_nothing(
        self, repository: SessionRepository, change: str
    ) -> None:
        repository.create_session(full_session())
        record = record_of(repository)
        if change == "update":
            repository.modify_session(SESSION_ID, lambda session: session.add_answer("a", 1))
        elif change == "error":
            repository.append_error(SESSION_ID, "t", "m")
        elif change == "log":
            repository.append_log(SESSION_ID, "m")
        elif change == "hold":
            repository.hold_session(SESSION_ID)
        else:
            repository.delete_session(SESSION_ID)
            if change == "incarnation":
                repository.create_session(full_session())
        before = repository.get_session(SESSION_ID)
        assert not repository.delete_session(SESSION_ID, unchanged_since=record)
        assert repository.get_session(SESSION_ID) == before

    def test_unconditional_delete_ignores_hold(self, repository: SessionRepository) -> None:
        repository.create_session(full_session())
        repository.hold_session(SESSION_ID)
        assert repository.delete_session(SESSION_ID)

    # --- restore ---

    def test_restore_keeps_version_times_histories_and_hold(self, repository: SessionRepository) -> None:
        record, errors, logs = old_record(repository, entries=2500)
        record = dataclasses.replace(record, held_at=LONG_AGO)
        repository.restore_record(record, errors, logs)
        restored = record_of(repository)
        assert without_write_id(restored) == without_write_id(record)
        assert restored.write_id != record.write_id
        assert history_of(repository) == (errors, logs)
        session = stored(repository)
        assert (session.version, session.updated_at) == (41, record.updated_at)
        assert [entry.position for entry in session.error_history] == list(range(1, 2502))
        session.add_error("t", "more")
        repository.update_session(session)
        assert (session.version, session.error_history[-1].position) == (42, 2502)
        assert repository.append_error(SESSION_ID, "t", "m").position == 2503

    def test_restore_of_existing_id_raises_exists(self, repository: SessionRepository) -> None:
        record, errors, logs = old_record(repository)
        repository.create_session(session_id=SESSION_ID)
        before = stored(repository)
        with pytest.raises(SessionExistsError):
            repository.restore_record(record, errors, logs)
        assert_same(stored(repository), before)

    def test_restore_replaces_stored_session(self, repository: SessionRepository) -> None:
        record, errors, logs = old_record(repository)
        repository.create_session(Session(session_id=SESSION_ID, answers={"new": 1}, logs=["a"]))
        repository.restore_record(record, errors, logs, replacing=record_of(repository))
        assert without_write_id(record_of(repository)) == without_write_id(record)
        assert history_of(repository) == (errors, logs)

    @pytest.mark.parametrize("change", ["update", "error", "log", "delete"])
    def test_restore_does_not_replace_changed_session(self, repository: SessionRepository, change: str) -> None:
        record, errors, logs = old_record(repository)
        repository.create_session(session_id=SESSION_ID)
        replacing = record_of(repository)
        if change == "update":
            repository.modify_session(SESSION_ID, lambda session: session.add_answer("a", 1))
        elif change == "error":
            repository.append_error(SESSION_ID, "t", "m")
        elif change == "log":
            repository.append_log(SESSION_ID, "m")
        else:
            repository.delete_session(SESSION_ID)
        before = repository.get_session(SESSION_ID)
        with pytest.raises(SessionNotFoundError if change == "delete" else StaleSessionError):
            repository.restore_record(record, errors, logs, replacing=replacing)
        assert repository.get_session(SESSION_ID) == before

    @pytest.mark.parametrize("more", [-1, 1], ids=["too_short", "too_long"])
    @pytest.mark.parametrize("history", ["errors", "logs"])
    def test_restore_rejects_histories_of_other_length(
        self, repository: SessionRepository, history: str, more: int
    ) -> None:
        record, errors, logs = old_record(repository)
        repository.create_session(session_id=SESSION_ID)
        if more < 0:
            (errors if history == "errors" else logs).pop()
        elif history == "errors":
            errors.append(ErrorEntry(LONG_AGO, "t", "m", record.content.phase, len(errors) + 1))
        else:
            logs.append("m")
        before, replacing = stored(repository), record_of(repository)
        with pytest.raises(InvalidSessionError):
            repository.restore_record(record, errors, logs, replacing=replacing)
        assert_same(stored(repository), before)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("session_id", "no id"),
            ("version", 0),
            ("error_count", -1),
            ("created_at", datetime(2001, 2, 3)),  # noqa: DTZ001 (naive on purpose)
            ("updated_at", "today"),
        ],
        ids=["session_id", "version", "error_count", "created_at", "updated_at"],
    )
    def test_restore_rejects_invalid_record(self, repository: SessionRepository, field: str, value: object) -> None:
        record, errors, logs = old_record(repository)
        with pytest.raises(InvalidSessionError):
            repository.restore_record(dataclasses.replace(record, **{field: value}), errors, logs)  # type: ignore[arg-type]
        assert repository.list_sessions() == []

    @pytest.mark.parametrize(
        ("document", "text"),
        [("answers", "[]"), ("answers", None), ("concept", "{"), ("concept", '{"a":NaN}'), ("failed_task_ids", "[1]")],
        ids=["wrong_type", "missing", "malformed", "nan", "invalid_task_id"],
    )
    def test_restore_rejects_invalid_documents(
        self, repository: SessionRepository, document: str, text: str | None
    ) -> None:
        record, errors, logs = old_record(repository)
        content = dataclasses.replace(record.content, documents={**record.content.documents, document: text})
        with pytest.raises(InvalidSessionError):
            repository.restore_record(dataclasses.replace(record, content=content), errors, logs)
        assert repository.list_sessions() == []

    def test_restore_keeps_unknown_phase(self, new_repository: NewRepository) -> None:
        source, target = new_repository(), new_repository()
        record, errors, logs = old_record(source)
        content = dataclasses.replace(record.content, phase="DEPLOYMENT")
        source.restore_record(dataclasses.replace(record, content=content), errors, logs)
        target.restore_record(record_of(source), *history_of(source))
        assert without_write_id(record_of(target)) == without_write_id(record_of(source))
        assert [item.phase for item in target.find_sessions().items] == ["DEPLOYMENT"]
