"""Copies of sessions from one repository to another."""

from __future__ import annotations

from typing import Any, get_args

from vibeforge_sessions.archive.bundle import Bundle, canonical_of, digest_of, has_equal_head, history_of, pack
from vibeforge_sessions.archive.exporting import session_ids
from vibeforge_sessions.archive.importing import PER_SESSION, OnConflict, store
from vibeforge_sessions.archive.report import OnSession, Report, Result
from vibeforge_sessions.errors import CorruptSessionError, InvalidArgumentError, InvalidSessionError
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.query import SessionFilter
from vibeforge_sessions.repository.serialization import Record


def copy_sessions(
    source: SessionRepository[Any],
    target: SessionRepository[Any],
    filter: SessionFilter | None = None,  # noqa: A002 (the contract's name)
    *,
    on_conflict: OnConflict = "fail",
    thorough: bool = False,
    stop_on_error: bool = False,
    on_session: OnSession | None = None,
) -> Report:
    """Copy sessions unchanged from one repository to another, while the source is in use.

    Each session is read in one consistent state, stored in one transaction, read back from the target, and compared by
    its digest. Nothing is deleted in the target. An interrupted copy can be started again. A second copy transfers the
    changes since the first: if the target has an earlier state of a session, it is ``replaced``. Applications should
    not write to the target before the last copy is complete.

    :param filter: selects sessions; all by default.
    :param on_conflict: decides about a session of which the target has anything but an earlier state: another
        incarnation under the same id, or changes of its own. ``fail``: report the conflict and keep the target's.
        ``skip``: keep the target's. ``replace``: store the source's instead. ``newer``: store the source's if its
        ``updated_at`` is later.
    :param thorough: compare the histories, too, of sessions that are otherwise equal. By default such a session counts
        as copied if it has as many entries, because histories only grow and every entry moves ``updated_at``.
    :param stop_on_error: raise the first problem instead of continuing. Sessions that were copied before stay.
    :raises InvalidArgumentError: source and target are the same repository, or `on_conflict` is not one of its values.
    """
    if on_conflict not in get_args(OnConflict):
        raise InvalidArgumentError(f"must be one of {', '.join(get_args(OnConflict))}", "on_conflict")
    if source is target:
        raise InvalidArgumentError("must be another repository than the source", "target")
    report = Report()
    for session_id in session_ids(source, filter):
        try:
            result = _copy(source, target, session_id, on_conflict, thorough=thorough)
        except PER_SESSION as error:
            if stop_on_error:
                raise
            result = Result("failed", session_id, reason=str(error))
        report.add(result, on_session)
    return report


def _copy(
    source: SessionRepository[Any],
    target: SessionRepository[Any],
    session_id: str,
    on_conflict: OnConflict,
    *,
    thorough: bool,
) -> Result:
    if not thorough and _has_equal_copy(source, target, session_id):
        return Result("unchanged", session_id)
    bundle = pack(source, session_id)
    if bundle is None:
        return Result("gone", session_id)

    def may_replace(stored: Record) -> bool:
        return (
            on_conflict == "replace"
            or (on_conflict == "newer" and bundle.record.updated_at > stored.updated_at)
            or _is_earlier_state(target, stored, bundle)
        )

    with bundle:
        outcome = store(target, bundle, may_replace)
        if outcome in {"unchanged", "skipped"}:
            if outcome == "skipped" and on_conflict == "fail":
                raise InvalidSessionError(
                    "the target has another session of this id, or a later state of it: choose another on_conflict"
                )
            return Result(outcome, session_id)
        _check_stored(target, bundle)
        return Result(outcome, session_id, *bundle.record.counts)


def _has_equal_copy(source: SessionRepository[Any], target: SessionRepository[Any], session_id: str) -> bool:
    copied = target.get_record(session_id)
    stored = None if copied is None else source.get_record(session_id)
    return copied is not None and stored is not None and has_equal_head(stored, copied)


def _is_earlier_state(target: SessionRepository[Any], stored: Record, bundle: Bundle) -> bool:
    """Return whether the record of the target is an earlier state of the session in the source."""
    record = bundle.record
    if stored.created_at != record.created_at or stored.updated_at > record.updated_at:
        return False
    if stored.version > record.version or any(map(int.__gt__, stored.counts, record.counts)):
        return False
    if stored.version == record.version and canonical_of(stored).content != record.content:
        return False
    errors = history_of(target.list_errors, record.session_id, stored.error_count)
    logs = history_of(target.list_logs, record.session_id, stored.log_count)
    return all(map(_equal, errors, bundle.errors)) and all(map(_equal, logs, bundle.logs))


def _equal(one: object, other: object) -> bool:
    return one == other


def _check_stored(target: SessionRepository[Any], bundle: Bundle) -> None:
    session_id = bundle.record.session_id
    stored = target.get_record(session_id)
    if stored is None or digest_of(target, stored) != bundle.digest:
        raise CorruptSessionError(
            session_id, "it differs from what was copied: another process writes to the target, or its data is damaged"
        )
