"""Copies of sessions from one repository to another."""

from __future__ import annotations

import functools
from typing import Any, TypeAlias, get_args

from vibeforge_sessions.archive.bundle import Bundle, canonical_of, digest_of, histories_of, pack
from vibeforge_sessions.archive.importing import OnConflict, store
from vibeforge_sessions.archive.report import OnSession, Report, Result, transfer_each
from vibeforge_sessions.errors import CorruptSessionError, InvalidArgumentError, InvalidSessionError
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.query import SessionFilter
from vibeforge_sessions.repository.serialization import Record

_Repository: TypeAlias = SessionRepository[Any]


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
    :param on_conflict: what to do if the target has a session of the same id that is not an earlier state: another
        incarnation, or one with changes made in the target. ``fail``: report the conflict and keep the target's.
        ``skip``: keep the target's. ``replace``: store the source's instead. ``newer``: store the source's if its
        ``updated_at`` is later.
    :param thorough: compare the histories, too, of sessions that are otherwise equal. By default such a session counts
        as copied if it has as many entries, because histories only grow and every entry advances ``updated_at``.
    :param stop_on_error: raise the first problem instead of continuing. Sessions that were copied before stay.
    :raises InvalidArgumentError: source and target are the same repository, or `on_conflict` is not one of its values.
    """
    if on_conflict not in get_args(OnConflict):
        raise InvalidArgumentError(f"must be one of {', '.join(get_args(OnConflict))}", "on_conflict")
    if source is target:
        raise InvalidArgumentError("must not be the same repository as the source", "target")
    transfer = functools.partial(_copy, source, target, on_conflict=on_conflict, thorough=thorough)
    return transfer_each(source.list_sessions(filter), transfer, stop_on_error=stop_on_error, on_session=on_session)


def _copy(
    source: _Repository, target: _Repository, session_id: str, *, on_conflict: OnConflict, thorough: bool
) -> Result:
    copied = None if thorough else target.get_record(session_id)
    stored = None if copied is None else source.get_record(session_id)
    if copied is not None and stored is not None and canonical_of(stored) == canonical_of(copied):
        return Result("unchanged", session_id)
    bundle = pack(source, session_id)
    if bundle is None:
        return Result("gone", session_id)
    with bundle:
        result = store(target, bundle, on_conflict, lambda stored: _is_earlier_state(target, stored, bundle))
        if result.outcome == "skipped" and on_conflict == "fail":
            raise InvalidSessionError(
                "the target has another session of this id, or a later state of it: choose another on_conflict"
            )
        if result.outcome in {"created", "replaced"}:
            stored = target.get_record(session_id)
            if stored is None or digest_of(target, stored) != bundle.digest:
                raise CorruptSessionError(
                    session_id,
                    "it differs from what was copied: another process writes to the target, or its data is damaged",
                )
        return result


def _is_earlier_state(target: _Repository, stored: Record, bundle: Bundle) -> bool:
    """Return whether the record of the target is an earlier state of the session in the source."""
    record = bundle.record
    if stored.created_at != record.created_at or stored.updated_at > record.updated_at:
        return False
    if stored.version > record.version or any(map(int.__gt__, stored.counts, record.counts)):
        return False
    if stored.version == record.version and canonical_of(stored).content != record.content:
        return False
    for kind, copied in histories_of(target, stored).items():
        if any(old != new for old, new in zip(copied, bundle.histories[kind], strict=False)):
            return False
    return True
