"""Changesets: the difference between the stored state of a session and the caller's session.

Every value is validated here, before anything is written, so that all implementations reject the same values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from vibeforge_sessions.errors import InvalidArgumentError, InvalidSessionError, StaleSessionError
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.history import ErrorEntry, normalize_errors
from vibeforge_sessions.model.record import Baseline, Content
from vibeforge_sessions.model.session import S, Session, missing_fields, phases_of, raise_invalid
from vibeforge_sessions.repository.arguments import check_session_id
from vibeforge_sessions.repository.serialization import Record, decode_session, encode_content


@dataclasses.dataclass(frozen=True, slots=True)
class Changeset:
    """Validated and encoded changes of a session, to be stored in one transaction."""

    session_id: str
    created_at: datetime
    updated_at: datetime
    """Update time to store, unless the stored time is later."""
    content: Content
    """Encoded session after the changes."""
    documents: Mapping[str, str | None]
    """Documents that differ from the stored ones; all documents for a new session."""
    errors: tuple[ErrorEntry, ...]
    """Error entries to append."""
    logs: tuple[str, ...]
    """Log lines to append."""
    version: int = 0
    """Version that the changes are based on; 0 for a new session."""
    expected_write_id: str = ""
    """Write id of the state that the changes are based on."""
    fingerprints: Mapping[str, bytes | None] = dataclasses.field(default_factory=dict)
    """Fingerprints of the documents, so that the next update encodes only changed documents."""
    write_id: str = dataclasses.field(default_factory=validation.new_write_id)
    """Random id of this write."""

    def record(self, version: int, updated_at: datetime, error_count: int, log_count: int) -> Record:
        """Return the record that the session has after these changes are stored."""
        counts = error_count, log_count
        return Record(self.session_id, self.created_at, updated_at, version, self.write_id, *counts, self.content)


def new_session(session: S | None, session_id: str | None, session_type: type[S]) -> S:
    """Return the session that `create_session` stores: the given one, or an empty one.

    :raises InvalidArgumentError: the id is not valid, both arguments are given, or the session is of another class.
    """
    if session is not None:
        if session_id is not None:
            raise InvalidArgumentError("must be left out if a session is given: the session has an id", "session_id")
        return check_session(session, session_type)
    try:
        return session_type() if session_id is None else session_type(session_id=check_session_id(session_id))
    except ValidationError as error:  # a subclass with a field that has no default
        raise_invalid(error)


def check_session(session: object, session_type: type[S]) -> S:
    """Return the session if it is exactly of the class that the repository stores, and its id and version are valid.

    :raises InvalidArgumentError: the session is of another class, or is not a session.
    :raises InvalidSessionError: its id or version is invalid, or a field was deleted.
    """
    if type(session) is not session_type:
        raise InvalidArgumentError(
            f"must be a {session_type.__name__}, not {type(session).__name__}: create the repository with another "
            "session_type to store another class",
            "session",
        )
    fields = vars(session)
    missing = session_type.model_fields.keys() - fields.keys()
    if missing:
        raise InvalidSessionError("must not be deleted from the session", min(missing))
    fields["session_id"] = validation.check_session_id(session.session_id)
    fields["version"] = validation.check_integer(session.version, "version", least=0)
    return session


def changeset_for_create(session: Session) -> Changeset:
    """Return the changeset that stores `session` as a new session.

    :raises InvalidSessionError: the session contains an invalid value, or was read without its older entries.
    """
    if session.omitted_errors or session.omitted_logs:
        raise InvalidSessionError(
            "was read without its older entries: read the whole session (recent=None) to create it elsewhere",
            "error_history",
        )
    for name in sorted(missing_fields(session)):
        raise InvalidSessionError("was missing from the dict that the session was created from: assign the field", name)
    content, fingerprints = encode_content(session)
    return Changeset(
        session_id=session.session_id,
        created_at=validation.check_datetime(session.created_at, "created_at"),
        updated_at=validation.check_datetime(session.updated_at, "updated_at"),
        content=content,
        documents=content.documents,
        errors=normalize_errors(validation.check_field(vars(session), "error_history", list), phases_of(type(session))),
        logs=tuple(map(validation.storable_text, validation.check_field(vars(session), "logs", list))),
        fingerprints=fingerprints,
    )


def changeset_for_update(session: Session) -> Changeset | None:
    """Return the changeset that updates `session`; None if the session is unchanged.

    The baseline of the session must contain the stored content (see `needs_content`).

    :raises InvalidSessionError: the session contains an invalid value, or a stored entry was changed or removed.
    """
    baseline = baseline_of(session)
    if baseline.content is None:
        raise AssertionError("the caller has to read the stored content first")
    if validation.check_datetime(session.created_at, "created_at") != baseline.created_at:
        raise InvalidSessionError("must not be changed after the session was stored", "created_at")
    content, fingerprints = encode_content(session, baseline)
    added = _new_entries(session, "error_history", baseline.errors)
    errors = normalize_errors(added, phases_of(type(session)), len(baseline.errors or ())) if added else ()
    lines = _new_entries(session, "logs", baseline.logs)
    logs = tuple(map(validation.storable_text, lines))
    updated_at = validation.check_datetime(session.updated_at, "updated_at")
    if updated_at == baseline.updated_at and not errors and not logs and content == baseline.content:
        return None
    stored = baseline.content.documents
    return Changeset(
        session_id=session.session_id,
        created_at=baseline.created_at,
        updated_at=max(updated_at, validation.utc_now()),
        content=content,
        documents={name: text for name, text in content.documents.items() if text != stored[name]},
        errors=errors,
        logs=logs,
        version=session.version,
        expected_write_id=baseline.write_id,
        fingerprints=fingerprints,
    )


def needs_content(session: Session) -> bool:
    """Return whether the stored content must be read before an update, as for a session made by `from_dict`."""
    return baseline_of(session).content is None


def check_current(session: Session, stored: Record) -> None:
    """Reject an update of a session that was not read from the stored state.

    :raises StaleSessionError: another caller has since stored the session, or another incarnation is stored.
    """
    if (stored.version, stored.write_id) != (session.version, baseline_of(session).write_id):
        raise StaleSessionError(session.session_id, session.version, stored.version)


def adopt_content(session: Session, stored: Record) -> None:
    """Set the stored content in the session's baseline; set fields that its dict did not have to the stored values.

    :raises InvalidSessionError: such a field was changed in place.
    :raises CorruptSessionError: this code cannot read the stored session.
    """
    missing = missing_fields(session)
    if missing:
        whole = decode_session(type(session), stored, (), ())
        for name in missing:
            setattr(session, name, getattr(whole, name))
    session._baseline = dataclasses.replace(baseline_of(session), content=stored.content, missing={})  # noqa: SLF001 (set by repositories)


def baseline_of(session: Session) -> Baseline:
    """Return the baseline of the session.

    :raises InvalidSessionError: the session has a version but no baseline, so its new entries cannot be determined.
    """
    baseline: Baseline | None = session._baseline  # noqa: SLF001 (set by repositories)
    if baseline is None or not session.version:
        raise InvalidSessionError(
            "must be 0 unless the session was read from a repository or created by from_dict", "version"
        )
    return baseline


def mark_stored(session: Session, changeset: Changeset, stored: Record, *, transaction: str | None = None) -> None:
    """Set the stored version, update time, entry positions and baseline in the caller's session.

    The session's lists keep their entries. New entries get positions, and their strings become the stored strings.

    :param transaction: the caller's transaction that stored the changeset and may still be rolled back.
    """
    old: Baseline | None = session._baseline if changeset.version else None  # noqa: SLF001 (set by repositories)
    earlier: tuple[Baseline, ...] = ()
    if old is not None and transaction is not None:
        before = old.earlier if old.transaction == transaction else ()
        earlier = (dataclasses.replace(old, earlier=()), *before)
    errors, logs = (old.errors or (), old.logs or ()) if old else ((), ())
    if changeset.errors:
        errors += assign_positions(changeset.errors, stored.error_count)
        session.error_history[: len(errors)] = errors
    if changeset.logs:
        logs += changeset.logs
        session.logs[: len(logs)] = logs
    session.version = stored.version
    session.updated_at = stored.updated_at
    session._baseline = Baseline(  # noqa: SLF001 (set by repositories)
        version=stored.version,
        write_id=stored.write_id,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
        errors=errors,
        logs=logs,
        omitted_errors=old.omitted_errors if old else 0,
        omitted_logs=old.omitted_logs if old else 0,
        content=stored.content,
        fingerprints=changeset.fingerprints,
        log_position=stored.log_count if changeset.logs else old.log_position if old else 0,
        transaction=transaction,
        earlier=earlier,
    )


def mark_uncommitted(session: S, transaction: str | None) -> S:
    """Mark a session as written by the caller's transaction, which is still open; return the session."""
    if transaction is not None:
        session._baseline = dataclasses.replace(baseline_of(session), transaction=transaction)  # noqa: SLF001 (set by repositories)
    return session


def possible_states(session: Session) -> tuple[Baseline, ...]:
    """Return the states that may be stored now, newest first. Another writer stored any other state."""
    baseline = baseline_of(session)
    return (baseline, *baseline.earlier)


def adopt_state(session: Session, index: int, transaction: str | None) -> None:
    """Make one of `possible_states` the baseline of the session; changes after that state become unsaved changes.

    :param index: the index in `possible_states` of the stored state.
    :param transaction: the caller's transaction that has read the stored state, if it has also written the session;
        otherwise None.
    """
    states = possible_states(session)
    if states[0].transaction == transaction:
        state = dataclasses.replace(states[index], transaction=transaction, earlier=states[index + 1 :])
    else:  # a state that another transaction reads is committed
        state = dataclasses.replace(states[index], transaction=None, earlier=())
    session.version, session._baseline = state.version, state  # noqa: SLF001 (set by repositories)


def assign_positions(errors: Iterable[ErrorEntry], count: int) -> tuple[ErrorEntry, ...]:
    """Return the entries with positions at the end of a history of length `count`."""
    errors = tuple(errors)
    return tuple(entry.at(position) for position, entry in enumerate(errors, count - len(errors) + 1))


def _new_entries(session: Session, name: str, stored: tuple[Any, ...] | None) -> list[Any]:
    entries = validation.check_field(vars(session), name, list)
    try:  # the comparison is quick, because the values of identical objects are not compared
        changed = stored is None or entries[: len(stored)] != list(stored)
    except Exception:  # noqa: BLE001 (a caller's class may raise anything)
        changed = True
    if stored is None or changed:
        raise InvalidSessionError("stored entries must not be changed or removed: append only", name)
    return entries[len(stored) :]
