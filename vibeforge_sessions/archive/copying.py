"""`copy_sessions`: from one repository to another."""

from __future__ import annotations

from typing import Any, get_args

from vibeforge_sessions.archive.bundle import Parcel, canonical_of, digest_of, history_of, is_same_head, pack
from vibeforge_sessions.archive.exporting import session_ids
from vibeforge_sessions.archive.importing import PER_SESSION, OnConflict, store
from vibeforge_sessions.archive.report import OnSession, Report, Result
from vibeforge_sessions.errors import CorruptSessionError, InvalidSessionError
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
    """Store the sessions of one repository in another as they are there, while the source is in use.

    Each is read as of one moment, stored in one transaction, read back from the target and compared by its digest.
    Nothing is deleted in the target. A copy that was interrupted is just begun again, and a second one takes what has
    changed since: a session whose copy is an earlier state of it is ``replaced`` by the later one. Nobody should write
    to the target before the last copy is done.

    :param filter: which sessions; all by default.
    :param on_conflict: about a session of which the target has another than an earlier state: made anew under the same
        id, or written to in both places. ``fail``: tell it, and leave it. ``skip``: leave it. ``replace``: put the
        source's in its place. ``newer``: put it there if its ``updated_at`` is later.
    :param thorough: compare the histories, too, of sessions that are the same in all else and have as many entries; by
        default such a session counts as copied, since histories only grow and every entry moves ``updated_at``.
    :param stop_on_error: raise what is wrong with a session instead of going on. What was copied before stays.
    :raises InvalidSessionError: source and target are the same.
    """
    if on_conflict not in get_args(OnConflict):
        raise InvalidSessionError(f"must be one of {', '.join(get_args(OnConflict))}", "on_conflict")
    if source is target:
        raise InvalidSessionError("must be another repository than the source", "target")
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
    if not thorough and _looks_copied(source, target, session_id):
        return Result("unchanged", session_id)
    parcel = pack(source, session_id)
    if parcel is None:
        return Result("gone", session_id)

    def may_replace(stored: Record) -> bool:
        return (
            on_conflict == "replace"
            or (on_conflict == "newer" and parcel.record.updated_at > stored.updated_at)
            or _is_earlier(target, stored, parcel)
        )

    with parcel:
        outcome = store(target, parcel, may_replace)
        if outcome in {"unchanged", "skipped"}:
            if outcome == "skipped" and on_conflict == "fail":
                raise InvalidSessionError("the target has another session of this id, or a later state of it")
            return Result(outcome, session_id)
        _check_stored(target, parcel)
        return Result(outcome, session_id, *parcel.record.counts)


def _looks_copied(source: SessionRepository[Any], target: SessionRepository[Any], session_id: str) -> bool:
    there = target.get_record(session_id)
    here = None if there is None else source.get_record(session_id)
    return there is not None and here is not None and is_same_head(here, there)


def _is_earlier(target: SessionRepository[Any], stored: Record, parcel: Parcel) -> bool:
    """Tell whether what the target has is what the source had before: the same session, and nothing more in it."""
    record = parcel.record
    if stored.created_at != record.created_at or stored.updated_at > record.updated_at:
        return False
    if stored.version > record.version or any(map(int.__gt__, stored.counts, record.counts)):
        return False
    if stored.version == record.version and canonical_of(stored).content != record.content:
        return False
    errors = history_of(target.list_errors, record.session_id, stored.error_count)
    logs = history_of(target.list_logs, record.session_id, stored.log_count)
    return all(map(_equal, errors, parcel.errors)) and all(map(_equal, logs, parcel.logs))


def _equal(one: object, other: object) -> bool:
    return one == other


def _check_stored(target: SessionRepository[Any], parcel: Parcel) -> None:
    session_id = parcel.record.session_id
    stored = target.get_record(session_id)
    if stored is None or digest_of(target, stored) != parcel.digest:
        raise CorruptSessionError(session_id, "it is not what was copied; or somebody else writes to the target")
