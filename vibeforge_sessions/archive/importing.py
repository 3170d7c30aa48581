"""Import of sessions from a file into a repository, and copies from one repository to another."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, Final, Literal, TypeAlias, get_args

from vibeforge_sessions import errors
from vibeforge_sessions.archive import application, reading, serialization
from vibeforge_sessions.archive.bundle import Bundle, canonical_of, digest_of, histories_of, pack
from vibeforge_sessions.archive.files import disk_errors
from vibeforge_sessions.archive.report import PER_SESSION, OnSession, Outcome, Report, Result, transfer_each
from vibeforge_sessions.model import validation
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.query import SessionFilter
from vibeforge_sessions.repository.serialization import Record

OnConflict: TypeAlias = Literal["fail", "skip", "replace", "newer"]
"""Treatment of a session whose id is stored with different content: see `import_sessions`."""

_CLOCK_TOLERANCE: Final = timedelta(days=1)
"""Maximum time by which stored times may be ahead of the clock of this machine."""
_ATTEMPTS: Final = 10
_CHANGED_MEANWHILE: Final = (errors.SessionExistsError, errors.SessionNotFoundError, errors.StaleSessionError)
"""Errors that a restore raises if another writer changes the session meanwhile."""
_PEEK: Final = 512
_BLANK: Final = b" \t\r\n\xef\xbb\xbf"
"""White space, and the byte order mark that some editors write."""


def import_sessions(
    repository: SessionRepository[Any],
    source: str | os.PathLike[str] | IO[bytes],
    *,
    on_conflict: OnConflict = "fail",
    stop_on_error: bool = False,
    on_session: OnSession | None = None,
    longest_line: int = serialization.LONGEST_LINE,
) -> Report:
    """Store the sessions of a file unchanged: with their versions, times, positions and holds.

    Each session is stored in one transaction, after its closing line has been checked. A session that is already stored
    with equal content is ``unchanged``, regardless of `on_conflict`, so an interrupted import can be started again.
    Problems of a line or a session are reported, and the import continues.

    :param source: a path, or a binary file that is open for reading. Its content is the output of `export_sessions`
        or `ArchiveWriter`, compressed or not, or that of a file of the application: one session in the form of
        `Session.to_dict` (older files have fewer fields), a list of sessions, or an object that maps ids to sessions.
    :param on_conflict: what to do if a session is already stored with different content. ``fail``: report the conflict
        and keep the stored session. ``skip``: keep the stored session. ``replace``: store the session of the file
        instead. ``newer``: store the session of the file if its ``updated_at`` is later.
    :param stop_on_error: raise the first problem instead of continuing. Sessions stored before it remain stored.
    :param longest_line: maximum size in bytes of a line, and of a file of the application.
    :raises ArchiveError: the file cannot be read; or there was a problem, and `stop_on_error` is True.
    :raises InvalidArgumentError: `on_conflict` is not one of the values above.
    """
    if on_conflict not in get_args(OnConflict):
        raise errors.InvalidArgumentError(f"must be one of {', '.join(get_args(OnConflict))}", "on_conflict")
    report = Report()
    seen: set[str] = set()
    with ExitStack() as files:
        if isinstance(source, (str, os.PathLike)):
            with disk_errors():
                source = files.enter_context(Path(source).open("rb"))
        file = files.enter_context(reading.opened(source))
        for item in files.enter_context(closing(_items(file, _written_at(source), longest_line))):
            result = item if isinstance(item, Result) else _import(repository, item, on_conflict, seen)
            report.add(result, on_session)
            if stop_on_error and result.outcome == "failed":
                raise errors.ArchiveError(str(result.reason), result.line)
    return report


def _import(repository: SessionRepository[Any], bundle: Bundle, on_conflict: OnConflict, seen: set[str]) -> Result:
    record = bundle.record
    try:
        with bundle:
            # a session may be archived, created again and archived again: only "newer" decides between the two
            if record.session_id in seen and on_conflict != "newer":
                raise errors.InvalidSessionError(
                    "this file contains this session twice: import it with on_conflict=newer"
                )
            seen.add(record.session_id)
            _check_clocks(record)
            result = _store(repository, bundle, on_conflict)
            if result.outcome == "skipped" and on_conflict == "fail":
                raise errors.SessionExistsError(record.session_id)
            return result
    except PER_SESSION as error:
        return Result("failed", record.session_id, reason=str(error), line=bundle.line)


def _check_clocks(record: Record) -> None:
    """Reject times in the future, because later updates could not get a later time.

    :raises InvalidSessionError: a time is more than a day ahead of the clock of this machine.
    """
    latest = validation.utc_now() + _CLOCK_TOLERANCE
    for name in ("created_at", "updated_at", "held_at"):
        time = getattr(record, name)
        if time is not None and time > latest:
            raise errors.InvalidSessionError(
                "is more than a day ahead of this machine's clock: correct the clock or the file", name
            )


def _written_at(file: IO[bytes]) -> datetime:
    try:
        return datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)
    except (OSError, AttributeError, ValueError):  # for example a file in memory, which has no descriptor
        return validation.utc_now()


def _items(file: reading.Lines, written_at: datetime, longest: int) -> Generator[Bundle | Result, None, None]:
    """Yield the sessions of an archive or of a file of the application.

    A file of the application is recognized only after it has been read completely.
    """
    try:
        with disk_errors():
            head = file.peek(_PEEK).lstrip(_BLANK)
            is_archive = head.startswith(serialization.BEGINNING) or not head.startswith((b"{", b"["))
            content = b"" if is_archive else file.read(longest + 1)
        if len(content) > longest:
            raise errors.ArchiveError(
                f"is not an archive, and longer than the limit of {longest} bytes for other files: increase "
                "longest_line"
            )
    except errors.ArchiveError as error:
        yield Result("failed", None, reason=error.reason, line=1)
        return
    sessions = None if is_archive else application.decode_sessions(content)
    if sessions is not None:
        yield from application.read_bundles(sessions, written_at)
    else:
        yield from reading.read_bundles(file if is_archive else io.BufferedReader(io.BytesIO(content)), longest)


# --- copies ---

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
    """Copy sessions unchanged from one repository to another; the source may be in use meanwhile.

    Each session is read in one consistent state, stored in one transaction, read back from the target, and compared by
    its digest. Nothing is deleted in the target. An interrupted copy can be started again. A second copy transfers the
    changes since the first: an earlier state of a session in the target is ``replaced``. Applications should not write
    to the target before the last copy is complete.

    :param filter: conditions on the sessions; all sessions by default.
    :param on_conflict: what to do if the target has a session with the same id that is not an earlier state: another
        incarnation, or a session that was changed in the target. ``fail``: report the conflict and keep the target's
        session. ``skip``: keep the target's session. ``replace``: store the source's session instead. ``newer``: store
        the source's session if its ``updated_at`` is later.
    :param thorough: also compare the histories of sessions that are otherwise equal. By default, histories of the same
        length are considered equal, because histories only grow and every entry advances ``updated_at``.
    :param stop_on_error: raise the first problem instead of continuing. Sessions that were already copied remain.
    :raises InvalidArgumentError: source and target are the same repository, or `on_conflict` is none of these values.
    """
    if on_conflict not in get_args(OnConflict):
        raise errors.InvalidArgumentError(f"must be one of {', '.join(get_args(OnConflict))}", "on_conflict")
    if source is target:
        raise errors.InvalidArgumentError("must not be the same repository as the source", "target")
    transfer = functools.partial(_copy, source, target, on_conflict=on_conflict, thorough=thorough)
    return transfer_each(source.list_sessions(filter), transfer, stop_on_error=stop_on_error, on_session=on_session)


def _copy(
    source: _Repository,
    target: _Repository,
    session_id: str,
    *,
    on_conflict: OnConflict,
    thorough: bool,
) -> Result:
    copied = None if thorough else target.get_record(session_id)
    stored = None if copied is None else source.get_record(session_id)
    if copied is not None and stored is not None and canonical_of(stored) == canonical_of(copied):
        return Result("unchanged", session_id)
    bundle = pack(source, session_id)
    if bundle is None:
        return Result("gone", session_id)
    with bundle:
        result = _store(target, bundle, on_conflict, lambda stored: _is_earlier_state(target, stored, bundle))
        if result.outcome == "skipped" and on_conflict == "fail":
            raise errors.InvalidSessionError(
                "the target has a different session with this id, or a later state of this session: choose another "
                "on_conflict"
            )
        if result.outcome in {"created", "replaced"}:
            stored = target.get_record(session_id)
            if stored is None or digest_of(target, stored) != bundle.digest:
                raise errors.CorruptSessionError(
                    session_id,
                    "its data in the target differs from the copied data: another process writes to the target, or the "
                    "target is damaged",
                )
        return result


def _is_earlier_state(target: _Repository, stored: Record, bundle: Bundle) -> bool:
    """Return whether the record of the target is an earlier state of the session in the source."""
    record = bundle.record
    if (
        stored.created_at != record.created_at
        or stored.updated_at > record.updated_at
        or stored.version > record.version
        or any(map(int.__gt__, stored.counts, record.counts))
        or (stored.version == record.version and canonical_of(stored).content != record.content)
    ):
        return False
    pairs = zip(histories_of(target, stored).values(), bundle.histories.values(), strict=True)
    return all(old == new for copied, history in pairs for old, new in zip(copied, history, strict=False))


# --- storing ---


def _store(
    repository: _Repository,
    bundle: Bundle,
    on_conflict: OnConflict,
    is_earlier_state: Callable[[Record], bool] = lambda _: False,
) -> Result:
    """Store a session; return the outcome.

    :param is_earlier_state: returns whether to replace a stored session with different content for any `on_conflict`.
    """
    session_id = bundle.record.session_id
    for attempt in range(1, _ATTEMPTS + 1):
        stored = repository.get_record(session_id)
        try:
            if stored is not None and _equals_stored(repository, stored, bundle):
                return Result("unchanged", session_id, line=bundle.line)
            if stored is not None and not (
                on_conflict == "replace"
                or (on_conflict == "newer" and bundle.record.updated_at > stored.updated_at)
                or is_earlier_state(stored)
            ):
                return Result("skipped", session_id, line=bundle.line)
            repository.restore_record(bundle.record, *bundle.histories.values(), replacing=stored)
        except _CHANGED_MEANWHILE:
            if attempt == _ATTEMPTS:
                raise
        else:
            outcome: Outcome = "created" if stored is None else "replaced"
            return Result(outcome, session_id, *bundle.record.counts, line=bundle.line)
    raise AssertionError("unreachable")


def _equals_stored(repository: _Repository, stored: Record, bundle: Bundle) -> bool:
    """Return whether a stored session equals a bundle. The digests are compared only if the records are equal."""
    try:
        return canonical_of(stored) == bundle.record and digest_of(repository, stored) == bundle.digest
    except errors.CorruptSessionError:  # an unreadable session differs from every bundle
        return False
