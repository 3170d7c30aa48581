"""`StoredSession`: a complete stored session, for implementations without tables.

The class does no locking and no I/O; the repository that uses it must do both.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Self

from vibeforge_sessions.model import validation
from vibeforge_sessions.model.history import ErrorEntry, log_line, phase_or_text
from vibeforge_sessions.model.session import S, Session, phases_of
from vibeforge_sessions.repository import restoration, serialization
from vibeforge_sessions.repository.changeset import Changeset, assign_positions, check_current
from vibeforge_sessions.repository.query import Query, SessionFilter, SessionSummary
from vibeforge_sessions.repository.serialization import Record


@dataclasses.dataclass(slots=True)
class StoredSession:
    """Stored session: its record and histories, and the effect of each write on them.

    All values are encoded as in a database, so that this object shares no mutable object with a caller's session.
    """

    record: Record
    errors: list[ErrorEntry]
    """Complete error history."""
    logs: list[str]
    """Complete log."""

    @classmethod
    def from_changeset(cls, changeset: Changeset) -> Self:
        """Return the stored session of a changeset of `changeset_for_create`."""
        stored = cls(changeset.record(1, changeset.updated_at, 0, 0), [], [])
        stored._store(changeset.errors, changeset.logs, changeset.updated_at)
        return stored

    @classmethod
    def from_record(cls, record: Record, errors: Iterable[ErrorEntry], logs: Iterable[str]) -> Self:
        """Return the stored session that `SessionRepository.restore_record` stores.

        :raises InvalidSessionError: a value is invalid, or a history does not have the length that the record states.
        """
        record = restoration.record_for_restore(record)
        history = restoration.check_history(record, errors)
        return cls(record, list(history), list(restoration.check_logs(record, logs)))

    def check_unchanged(self, session: Session) -> None:
        """Reject an update of a session that was read from another state.

        :raises StaleSessionError: another caller has since stored the session, or another incarnation is stored.
        """
        check_current(session, self.record)

    def is_deletable(self, unchanged_since: Record) -> bool:
        """Return whether `SessionRepository.delete_session` with this validated record deletes the session."""
        return restoration.is_same_state(self.record, unchanged_since) and self.record.held_at is None

    def hold(self, *, held: bool) -> None:
        """Do what `SessionRepository.hold_session` does, or what `release_session` does if `held` is False."""
        held_at = (self.record.held_at or validation.utc_now()) if held else None
        self.record = dataclasses.replace(self.record, held_at=held_at)

    def update(self, changeset: Changeset) -> None:
        """Apply a changeset of `changeset_for_update` that is based on this state."""
        version, write_id, content = self.record.version + 1, changeset.write_id, changeset.content
        self.record = dataclasses.replace(self.record, version=version, write_id=write_id, content=content)
        self._store(changeset.errors, changeset.logs, changeset.updated_at)

    def append_error(
        self, task_id: str, error_message: str, phase: str | None, session_type: type[Session]
    ) -> ErrorEntry:
        """Do what `SessionRepository.append_error` does."""
        now = validation.utc_now()
        task_id, message = validation.storable_task_id(task_id), validation.storable_text(error_message)
        known = phase_or_text(self.record.content.phase if phase is None else phase, phases_of(session_type))
        self._store([ErrorEntry(now, task_id, message, known)], [], now)
        return self.errors[-1]

    def append_log(self, message: str) -> str:
        """Do what `SessionRepository.append_log` does."""
        self._store([], [log_line(message)], validation.utc_now())
        return self.logs[-1]

    def to_session(self, session_type: type[S], recent: int | None = None) -> S:
        """Return a decoded copy, as `SessionRepository.get_session` does."""
        part = self.with_recent(recent)
        return serialization.decode_session(session_type, part.record, part.errors, part.logs)

    def with_recent(self, recent: int | None) -> Self:
        """Return a copy with only the last `recent` entries of each history."""
        starts = (0 if recent is None else max(0, count - recent) for count in self.record.counts)
        return dataclasses.replace(self, errors=self.errors[next(starts) :], logs=self.logs[next(starts) :])

    def list_errors(self, *, after: int, limit: int, task_id: str | None, phase: str | None) -> list[ErrorEntry]:
        """Return a slice of the error history, as `SessionRepository.list_errors` does."""
        found = self.errors[after:]
        if task_id is not None:
            task_id = validation.storable_task_id(task_id)
            found = [entry for entry in found if entry.task_id == task_id]
        if phase is not None:
            phase = validation.storable_phase(phase)
            found = [entry for entry in found if entry.phase == phase]
        return found[:limit]

    def list_logs(self, *, after: int, limit: int) -> list[str]:
        """Return a slice of the log lines, as `SessionRepository.list_logs` does."""
        return self.logs[after : after + limit]

    def _store(self, errors: Sequence[ErrorEntry], logs: Sequence[str], updated_at: datetime) -> None:
        """Append entries to the histories; set the counts and the update time of the record."""
        self.errors.extend(assign_positions(errors, len(self.errors) + len(errors)))
        self.logs.extend(logs)
        updated_at, counts = max(self.record.updated_at, updated_at), (len(self.errors), len(self.logs))
        self.record = dataclasses.replace(
            self.record, updated_at=updated_at, error_count=counts[0], log_count=counts[1]
        )


def select(query: Query, records: Iterable[Record]) -> list[Record]:
    """Return the records that match a query, in its order, starting after its cursor."""
    key = operator.attrgetter(query.column, "session_id")
    found = [record for record in records if matches(record, query.filter)]
    if query.after is not None:
        is_beyond = operator.lt if query.descending else operator.gt
        found = [record for record in found if is_beyond(key(record), query.after)]
    return sorted(found, key=key, reverse=query.descending)


def summary_of(record: Record) -> SessionSummary:
    """Return the summary of a session for a listing."""
    content = record.content
    artifacts = frozenset(name for name in serialization.ARTIFACTS if content.documents[name] is not None)
    times, is_held = (record.created_at, record.updated_at), record.held_at is not None
    state = content.phase, *times, record.version, *record.counts, content.active_task_id
    return SessionSummary(record.session_id, *state, artifacts, is_held)


def matches(record: Record, conditions: SessionFilter) -> bool:
    """Return whether a session matches a filter."""
    return (
        (conditions.phases is None or record.content.phase in conditions.phases)
        and (conditions.created_from is None or record.created_at >= conditions.created_from)
        and (conditions.created_before is None or record.created_at < conditions.created_before)
        and (conditions.updated_from is None or record.updated_at >= conditions.updated_from)
        and (conditions.updated_before is None or record.updated_at < conditions.updated_before)
        and (conditions.has_errors is None or conditions.has_errors is (record.error_count > 0))
    )
