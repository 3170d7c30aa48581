"""One session as a repository keeps it, whole: for implementations that have no tables.

Nothing in here locks or writes: a repository does that around it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from datetime import datetime
from typing import Self

from vibeforge_sessions.errors import StaleSessionError
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.history import ErrorEntry, log_line, phase_or_text
from vibeforge_sessions.model.session import S, Session, phases_of
from vibeforge_sessions.repository import changeset, restoration, serialization
from vibeforge_sessions.repository.changeset import Write
from vibeforge_sessions.repository.query import Query, SessionFilter, SessionSummary
from vibeforge_sessions.repository.serialization import Record


@dataclasses.dataclass(slots=True)
class StoredSession:
    """A stored session: what `create_session` left, brought up to date by the writes after it.

    Its values are encoded like a database's, so that nobody holds a part of it.
    """

    record: Record
    errors: list[ErrorEntry]
    logs: list[str]

    @classmethod
    def of(cls, write: Write) -> Self:
        """Return what a write of `plan_create` leaves behind."""
        record = changeset.record_of(write, version=1, updated_at=write.updated_at, error_count=0, log_count=0)
        stored = cls(record, [], [])
        stored._append(write)
        return stored

    @classmethod
    def restored(cls, record: Record, errors: Iterable[ErrorEntry], logs: Iterable[str]) -> Self:
        """Return what `SessionRepository.restore_record` leaves behind.

        :raises InvalidSessionError: something cannot be kept, or the histories are not as long as the record says.
        """
        record = restoration.plan_restore(record)
        history = restoration.check_history(record, errors)
        return cls(record, list(history), list(restoration.check_logs(record, logs)))

    def check_unchanged(self, session: Session) -> None:
        """Refuse an update of a session that was read from another state than this.

        :raises StaleSessionError: somebody else has stored it since, or has made it anew under the same id.
        """
        record = self.record
        if (record.version, record.write_id) != (session.version, changeset.baseline_of(session).write_id):
            raise StaleSessionError(session.session_id, session.version, record.version)

    def may_go(self, unchanged_since: Record) -> bool:
        """Tell whether `SessionRepository.delete_session` may delete it, asked for with this (checked) record."""
        return restoration.is_same_state(self.record, unchanged_since) and self.record.held_at is None

    def hold(self, *, held: bool) -> None:
        """Do what `SessionRepository.hold_session` does, or `release_session`."""
        held_at = (self.record.held_at or validation.utc_now()) if held else None
        self.record = dataclasses.replace(self.record, held_at=held_at)

    def update(self, write: Write) -> None:
        """Apply a write of `plan_update`, made from this state."""
        self.record = dataclasses.replace(
            self.record,
            updated_at=max(self.record.updated_at, write.updated_at),
            version=self.record.version + 1,
            write_id=write.write_id,
            content=write.content,
        )
        self._append(write)

    def append_error(
        self, task_id: str, error_message: str, phase: str | None, session_type: type[Session]
    ) -> ErrorEntry:
        """Do what `SessionRepository.append_error` does."""
        now = validation.utc_now()
        entry = ErrorEntry(
            timestamp=now,
            task_id=validation.storable_task_id(task_id),
            error_message=validation.storable_text(error_message),
            phase=phase_or_text(self.record.content.phase if phase is None else phase, phases_of(session_type)),
            position=self.record.error_count + 1,
        )
        self.errors.append(entry)
        self._count(now)
        return entry

    def append_log(self, message: str) -> str:
        """Do what `SessionRepository.append_log` does."""
        line = log_line(message)
        self.logs.append(line)
        self._count(validation.utc_now())
        return line

    def session(self, session_type: type[S], recent: int | None = None) -> S:
        """Return a copy, as `SessionRepository.get_session` does."""
        held = self.tail(recent)
        return serialization.decode_session(session_type, held.record, held.errors, held.logs)

    def tail(self, recent: int | None) -> Self:
        """Return the same with only the last `recent` entries, in lists of its own."""
        starts = (0 if recent is None else max(0, count - recent) for count in self.record.counts)
        return dataclasses.replace(self, errors=self.errors[next(starts) :], logs=self.logs[next(starts) :])

    def list_errors(self, *, after: int, limit: int, task_id: str | None, phase: str | None) -> list[ErrorEntry]:
        """Return a slice of the errors, as `SessionRepository.list_errors` does."""
        if task_id is None and phase is None:
            return self.errors[after : after + limit]
        errors = self.errors[after:]
        if task_id is not None:
            task_id = validation.storable_task_id(task_id)
            errors = [entry for entry in errors if entry.task_id == task_id]
        if phase is not None:
            phase = validation.storable_phase(phase)
            errors = [entry for entry in errors if entry.phase == phase]
        return errors[:limit]

    def list_logs(self, *, after: int, limit: int) -> list[str]:
        """Return a slice of the log lines, as `SessionRepository.list_logs` does."""
        return self.logs[after : after + limit]

    def _append(self, write: Write) -> None:
        self.record = dataclasses.replace(
            self.record,
            error_count=self.record.error_count + len(write.errors),
            log_count=self.record.log_count + len(write.logs),
        )
        self.errors.extend(changeset.place(write.errors, self.record.error_count))
        self.logs.extend(write.logs)

    def _count(self, now: datetime) -> None:
        """Bring the record up to date after an append: counts and time, never the version."""
        self.record = dataclasses.replace(
            self.record,
            updated_at=max(self.record.updated_at, now),
            error_count=len(self.errors),
            log_count=len(self.logs),
        )


def select(query: Query, records: Iterable[Record]) -> list[Record]:
    """Return the records that a query asks for, in its order, from its cursor on."""

    def key(record: Record) -> tuple[datetime, str]:
        return (record.updated_at if query.column == "updated_at" else record.created_at), record.session_id

    found = [record for record in records if matches(record, query.filter)]
    if query.after is not None:
        after = query.after
        found = [record for record in found if (key(record) < after if query.descending else key(record) > after)]
    return sorted(found, key=key, reverse=query.descending)


def summary_of(record: Record) -> SessionSummary:
    """Return what a listing shows of a session."""
    documents = record.content.documents
    return SessionSummary(
        session_id=record.session_id,
        phase=record.content.phase,
        created_at=record.created_at,
        updated_at=record.updated_at,
        version=record.version,
        error_count=record.error_count,
        log_count=record.log_count,
        active_task_id=record.content.active_task_id,
        artifacts=frozenset(name for name in serialization.ARTIFACTS if documents[name] is not None),
        held=record.held_at is not None,
    )


def matches(record: Record, asked: SessionFilter) -> bool:
    """Tell whether a filter asks for this session."""
    return (
        (asked.phases is None or record.content.phase in asked.phases)
        and (asked.created_from is None or record.created_at >= asked.created_from)
        and (asked.created_before is None or record.created_at < asked.created_before)
        and (asked.updated_from is None or record.updated_at >= asked.updated_from)
        and (asked.updated_before is None or record.updated_at < asked.updated_before)
        and (asked.has_errors is None or asked.has_errors is (record.error_count > 0))
    )
