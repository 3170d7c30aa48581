"""What storing a session takes: the change between what is stored and what a caller holds.

Everything that can be refused is refused here, before anything is written, so that every implementation
refuses the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from vibeforge_sessions.errors import InvalidSessionError
from vibeforge_sessions.model import validation
from vibeforge_sessions.model.builtin_types import plain_list
from vibeforge_sessions.model.history import ErrorEntry, clean_errors
from vibeforge_sessions.model.record import Baseline, Content, EarlierState
from vibeforge_sessions.model.session import S, Session, missing_fields, phases_of, raise_invalid
from vibeforge_sessions.repository.serialization import Record, decode_session, encode_content, fingerprints_of


@dataclasses.dataclass(frozen=True, slots=True)
class Write:
    """A session's change, checked, encoded and ready to be stored in one transaction."""

    session_id: str
    created_at: datetime
    updated_at: datetime
    """The row keeps its own where that is later."""
    content: Content
    documents: Mapping[str, str | None]
    """The documents that differ from what is stored; all of them for a new session."""
    errors: tuple[ErrorEntry, ...]
    logs: tuple[str, ...]
    version: int = 0
    """The version this change was made from; 0 for a new session."""
    replaces: str = ""
    """The write id that must still be stored."""
    fingerprints: Mapping[str, bytes | None] = dataclasses.field(default_factory=dict)
    """Of an update: what the document fields hold, so that the next one need not encode what stays the same."""
    write_id: str = dataclasses.field(default_factory=validation.new_write_id)


def new_session(session: S | None, session_id: str | None, session_type: type[S]) -> S:
    """Return the session that `create_session` is to store: the given one, or a fresh one."""
    if session is not None:
        if session_id is not None:
            raise InvalidSessionError("give a session or the id of a fresh one, not both", "session_id")
        return check_session(session, session_type)
    try:
        return (
            session_type() if session_id is None else session_type(session_id=validation.check_session_id(session_id))
        )
    except ValidationError as error:  # a subclass with a field that has no default
        raise_invalid(error)


def check_session(session: object, session_type: type[S]) -> S:
    """Return the session if it is of the very class that the repository stores, and its id keeps the rule."""
    if type(session) is not session_type:
        raise InvalidSessionError(
            f"this repository stores {session_type.__name__}, not {type(session).__name__}: see its session_type"
        )
    missing = session_type.model_fields.keys() - vars(session).keys()
    if missing:
        raise InvalidSessionError("is missing", min(missing))
    for name, value in (
        ("session_id", validation.check_session_id(session.session_id)),
        ("version", validation.check_integer(session.version, "version", least=0)),
    ):
        if vars(session)[name] is not value:  # of a subclass, which may answer differently the next time
            setattr(session, name, value)
    return session


def plan_create(session: Session) -> Write:
    """Return what stores `session` as a new one, whole.

    :raises InvalidSessionError: it holds what cannot be kept, or lacks entries that it was read without.
    """
    if session.omitted_errors or session.omitted_logs:
        raise InvalidSessionError("was read without its older entries: read it whole to store it anew", "error_history")
    for name in sorted(missing_fields(session)):
        raise InvalidSessionError("was missing in the dict that the session was made from: assign the field", name)
    content = encode_content(session)
    return Write(
        session_id=session.session_id,
        created_at=validation.check_datetime(session.created_at, "created_at"),
        updated_at=validation.check_datetime(session.updated_at, "updated_at"),
        content=content,
        documents=content.documents,
        errors=clean_errors(_list(session, "error_history"), phases_of(type(session))),
        logs=_clean_logs(_list(session, "logs")),
    )


def record_of(write: Write, *, version: int, updated_at: datetime, error_count: int, log_count: int) -> Record:
    """Return what a write leaves behind."""
    return Record(
        session_id=write.session_id,
        created_at=write.created_at,
        updated_at=updated_at,
        version=version,
        write_id=write.write_id,
        error_count=error_count,
        log_count=log_count,
        content=write.content,
    )


def plan_update(session: Session) -> Write | None:
    """Return what stores the changes of `session`; None where there are none.

    The session's baseline must hold its stored content (see `needs_content`).

    :raises InvalidSessionError: it holds what cannot be kept, or an entry that was stored already is changed.
    """
    baseline = baseline_of(session)
    if baseline.content is None:
        raise AssertionError("the caller has to read the stored content first")
    if validation.check_datetime(session.created_at, "created_at") != baseline.created_at:
        raise InvalidSessionError("of a stored session cannot be changed", "created_at")
    # a fingerprint costs a tenth of the text that it saves; a session that was just read has none yet
    fingerprints = fingerprints_of(session)
    same = {
        name: baseline.content.documents[name]
        for name, fingerprint in fingerprints.items()
        if fingerprint is not None and fingerprint == baseline.fingerprints.get(name)
    }
    content = encode_content(session, same)
    added = _added(session, "error_history", baseline.errors)
    errors = clean_errors(added, phases_of(type(session)), len(baseline.errors or ()))
    logs = _clean_logs(_added(session, "logs", baseline.logs))
    updated_at = validation.check_datetime(session.updated_at, "updated_at")
    if updated_at == baseline.updated_at and not errors and not logs and content == baseline.content:
        return None
    stored = baseline.content.documents
    return Write(
        session_id=session.session_id,
        created_at=baseline.created_at,
        updated_at=max(updated_at, validation.utc_now()),
        content=content,
        documents={name: text for name, text in content.documents.items() if text != stored[name]},
        errors=errors,
        logs=logs,
        version=session.version,
        replaces=baseline.write_id,
        fingerprints=fingerprints,
    )


def needs_content(session: Session) -> bool:
    """Tell whether the session travelled as JSON, so that its stored content must be read before an update."""
    return baseline_of(session).content is None


def adopt_content(session: Session, stored: Record) -> None:
    """Give the session back what was stored at its version, and the values of the fields that its dict did not have.

    :raises InvalidSessionError: such a field was changed in place.
    :raises CorruptSessionError: this code cannot read the stored session.
    """
    missing = missing_fields(session)
    if missing:
        whole = decode_session(type(session), stored, (), ())
        for name in missing:
            setattr(session, name, getattr(whole, name))
    session._baseline = dataclasses.replace(baseline_of(session), content=stored.content, missing={})  # noqa: SLF001 (a repository's)


def baseline_of(session: Session) -> Baseline:
    """Return what the session knows of its stored self.

    :raises InvalidSessionError: it has a version but not that; nobody could tell which of its entries are new.
    """
    baseline: Baseline | None = session._baseline  # noqa: SLF001 (a repository's)
    if baseline is None or not session.version:
        raise InvalidSessionError("has a version, but was not read from a repository or by from_dict", "version")
    return baseline


def mark_stored(session: Session, write: Write, stored: Record, *, transaction: str | None = None) -> None:
    """Record in the caller's session what was stored: its version, its time, and the positions of its entries.

    Its lists stay as they are, apart from the new entries' positions and from what storing made storable.

    :param transaction: the caller's transaction in which it was stored, which may be rolled back.
    """
    old: Baseline | None = session._baseline if write.version else None  # noqa: SLF001 (a repository's)
    earlier = _before(old, write.version, transaction) if old else ()
    errors, logs = (old.errors or (), old.logs or ()) if old else ((), ())
    if write.errors:  # what is written is stored by now: nothing of a caller's class is asked any more
        errors += place(write.errors, stored.error_count)
        list.__setitem__(session.error_history, slice(len(errors)), errors)
    if write.logs:
        logs += write.logs
        list.__setitem__(session.logs, slice(len(logs)), logs)
    session.version = stored.version
    session.updated_at = stored.updated_at
    session._baseline = Baseline(  # noqa: SLF001 (a repository's)
        write_id=stored.write_id,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
        errors=errors,
        logs=logs,
        omitted_errors=old.omitted_errors if old else 0,
        omitted_logs=old.omitted_logs if old else 0,
        content=stored.content,
        fingerprints=write.fingerprints,
        log_position=stored.log_count if write.logs else old.log_position if old else 0,
        transaction=transaction,
        earlier=earlier,
    )


def mark_uncommitted(session: S, transaction: str | None) -> S:
    """Record in a session that was just read that the caller's transaction has written it; return the session."""
    if transaction is not None:
        session._baseline = dataclasses.replace(baseline_of(session), transaction=transaction)  # noqa: SLF001 (a repository's)
    return session


@dataclasses.dataclass(frozen=True, slots=True)
class PossibleState:
    """A state that may be the stored one of a session that the caller's transaction has written."""

    version: int
    write_id: str
    last_error: ErrorEntry | None
    """The last entry of its error history that the session has."""
    last_log: tuple[int, str] | None
    """The position and text of the last of its log lines that the session has."""


def is_uncommitted(session: Session) -> bool:
    """Return whether a transaction that has written the session may have been rolled back since."""
    return baseline_of(session).transaction is not None


def possible_states(session: Session) -> list[PossibleState]:
    """Return the states of which one is stored unless another writer has stored another, newest first."""
    baseline = baseline_of(session)
    errors, logs = baseline.errors or (), baseline.logs or ()
    counts = [(len(errors), len(logs), baseline.log_position)]
    counts += [(state.error_count, state.log_count, state.log_position) for state in baseline.earlier]
    identities = [(session.version, baseline.write_id)]
    identities += [(state.version, state.write_id) for state in baseline.earlier]
    return [
        PossibleState(
            version,
            write_id,
            errors[error_count - 1] if error_count else None,
            (log_position, logs[log_count - 1]) if log_count else None,
        )
        for (version, write_id), (error_count, log_count, log_position) in zip(identities, counts, strict=True)
    ]


def adopt_state(session: Session, index: int, transaction: str | None) -> None:
    """Make the session one of its possible states with changes; what was stored after that state is to be stored again.

    :param index: which of `possible_states` is stored.
    :param transaction: the caller's transaction that finds it stored, if that has written the session itself.
    """
    baseline = baseline_of(session)
    if index:
        state = baseline.earlier[index - 1]
        session.version = state.version
        baseline = dataclasses.replace(
            baseline,
            write_id=state.write_id,
            updated_at=state.updated_at,
            errors=(baseline.errors or ())[: state.error_count],
            logs=(baseline.logs or ())[: state.log_count],
            content=state.content,
            fingerprints=state.fingerprints,
            log_position=state.log_position,
            earlier=baseline.earlier[index:],
        )
    if baseline.transaction != transaction:  # what another transaction finds is committed
        baseline = dataclasses.replace(baseline, transaction=None, earlier=())
    session._baseline = baseline  # noqa: SLF001 (a repository's)


def _before(old: Baseline, version: int, transaction: str | None) -> tuple[EarlierState, ...]:
    if transaction is None:
        return ()
    state = EarlierState(
        version=version,
        write_id=old.write_id,
        updated_at=old.updated_at,
        error_count=len(old.errors or ()),
        log_count=len(old.logs or ()),
        log_position=old.log_position,
        content=old.content,
        fingerprints=old.fingerprints,
    )
    return (state, *old.earlier) if old.transaction == transaction else (state,)


def place(errors: Iterable[ErrorEntry], count: int) -> tuple[ErrorEntry, ...]:
    """Return the entries with the last positions of a history that is `count` long."""
    errors = tuple(errors)
    return tuple(entry.at(position) for position, entry in enumerate(errors, count - len(errors) + 1))


def _list(session: Session, name: str) -> list[Any]:
    value = getattr(session, name)
    entries = plain_list(value)
    if entries is None or not issubclass(type(value), list):  # which takes what is put into it
        raise InvalidSessionError(f"must be a list, not {type(value).__name__}", name)
    return entries


def _added(session: Session, name: str, stored: tuple[Any, ...] | None) -> list[Any]:
    entries = _list(session, name)
    try:  # comparing lists is quick: entries that are the same objects are not looked into
        changed = stored is None or entries[: len(stored)] != list(stored)
    except Exception:  # noqa: BLE001 (whatever somebody else's class raises)
        changed = True
    if stored is None or changed:
        raise InvalidSessionError("entries that are stored already cannot be changed or removed", name)
    return entries[len(stored) :]


def _clean_logs(lines: Iterable[Any]) -> tuple[str, ...]:
    return tuple(validation.storable_text(line) for line in lines)
