"""`import_sessions`: from a file to a repository."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, Final, Literal, TypeAlias, get_args

from vibeforge_sessions.archive import application, reading, serialization
from vibeforge_sessions.archive.bundle import Parcel, digest_of, is_same_head
from vibeforge_sessions.archive.files import disk_errors
from vibeforge_sessions.archive.reading import Problem
from vibeforge_sessions.archive.report import OnSession, Report, Result
from vibeforge_sessions.errors import (
    ArchiveError,
    CorruptSessionError,
    InvalidSessionError,
    SessionExistsError,
    SessionNotFoundError,
    StaleSessionError,
)
from vibeforge_sessions.model import validation
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.serialization import Record

PER_SESSION: Final = (
    CorruptSessionError,
    InvalidSessionError,
    SessionExistsError,
    SessionNotFoundError,
    StaleSessionError,
)
"""What one session's fault is: the others can be moved all the same."""

OnConflict: TypeAlias = Literal["fail", "skip", "replace", "newer"]
"""What is done about a session that is there already, and another: see `import_sessions`."""

_AHEAD: Final = timedelta(days=1)
"""How far ahead of this machine's clock the one may have been that a session was stored by."""
_ATTEMPTS: Final = 10
_HEAD: Final = 512
_BLANK: Final = b" \t\r\n\xef\xbb\xbf"
"""White space, and what some editors put at the beginning of a file."""


def import_sessions(
    repository: SessionRepository[Any],
    source: str | os.PathLike[str] | IO[bytes],
    *,
    on_conflict: OnConflict = "fail",
    stop_on_error: bool = False,
    on_session: OnSession | None = None,
    longest_line: int = serialization.LONGEST_LINE,
) -> Report:
    """Store the sessions of a file as they are there: with their versions, times, positions and holds.

    Each session is stored in one transaction, once its closing line has been found to agree with it. One that is there
    already and equal is ``unchanged``, whatever `on_conflict` says: an import that was interrupted is just begun again.
    What is wrong with a line or a session is told, and the rest goes on.

    :param source: what `export_sessions` or `ArchiveWriter` has written, compressed or not; or a file of the
        application's own: one session as `Session.to_dict` returns it (older shapes have fewer fields), a list of
        them, or an object of them by their ids. A path, or a file that is open for reading bytes.
    :param on_conflict: about a session that is there already and is not equal. ``fail``: tell it, and store nothing of
        it. ``skip``: leave the one that is there. ``replace``: put the file's in its place. ``newer``: put it there if
        its ``updated_at`` is later.
    :param stop_on_error: raise the first problem instead of going on. What was stored before stays.
    :param longest_line: how many bytes a line may have, and a file of the application's own.
    :raises ArchiveError: the file cannot be read; with `stop_on_error`, any problem.
    """
    if on_conflict not in get_args(OnConflict):
        raise InvalidSessionError(f"must be one of {', '.join(get_args(OnConflict))}", "on_conflict")
    report = Report()
    seen: set[str] = set()
    with _opened(source) as (file, written_at), closing(_items(file, written_at, longest_line)) as items:
        for item in items:
            if isinstance(item, Problem):
                result = Result("failed", item.session_id, reason=item.reason, line=item.line)
            else:
                with item:
                    result = _import(repository, item, on_conflict, seen)
            report.add(result, on_session)
            if stop_on_error and result.outcome == "failed":
                raise ArchiveError(str(result.reason), result.line)
    return report


def _import(repository: SessionRepository[Any], parcel: Parcel, on_conflict: OnConflict, seen: set[str]) -> Result:
    record = parcel.record

    def may_replace(stored: Record) -> bool:
        return on_conflict == "replace" or (on_conflict == "newer" and record.updated_at > stored.updated_at)

    try:
        # one that is archived, made anew and archived again is there twice; which of them is meant, only "newer" says
        if record.session_id in seen and on_conflict != "newer":
            raise InvalidSessionError("a session of this id stands in this file already")
        seen.add(record.session_id)
        _check_clocks(record)
        outcome = store(repository, parcel, may_replace)
        if outcome == "skipped" and on_conflict == "fail":
            raise SessionExistsError(record.session_id)
    except PER_SESSION as error:
        return Result("failed", record.session_id, reason=str(error), line=parcel.line)
    moved = record.counts if outcome in {"created", "replaced"} else (0, 0)
    return Result(outcome, record.session_id, *moved, line=parcel.line)


def store(
    repository: SessionRepository[Any], parcel: Parcel, may_replace: Callable[[Record], bool]
) -> Literal["created", "replaced", "unchanged", "skipped"]:
    """Store a session, in the place of another one only if that may be."""
    session_id = parcel.record.session_id
    for attempt in range(1, _ATTEMPTS + 1):
        stored = repository.get_record(session_id)
        try:
            if stored is not None and is_equal(repository, stored, parcel):
                return "unchanged"
            if stored is not None and not may_replace(stored):
                return "skipped"
            repository.restore_record(parcel.record, parcel.errors, parcel.logs, replacing=stored)
        except (SessionNotFoundError, StaleSessionError, SessionExistsError):  # somebody else writes to it, too
            if attempt == _ATTEMPTS:
                raise
        else:
            return "created" if stored is None else "replaced"
    raise AssertionError("unreachable")


def is_equal(repository: SessionRepository[Any], stored: Record, parcel: Parcel) -> bool:
    """Tell whether a stored session is that of a parcel: by the digest, where the heads are the same."""
    try:
        return is_same_head(stored, parcel.record) and digest_of(repository, stored) == parcel.digest
    except CorruptSessionError:  # what is there cannot be read, so it is another
        return False


def _check_clocks(record: Record) -> None:
    """Refuse times that only a wrong clock has: nothing that is stored here could ever be later."""
    latest = validation.utc_now() + _AHEAD
    for name in ("created_at", "updated_at", "held_at"):
        time = getattr(record, name)
        if time is not None and time > latest:
            raise InvalidSessionError(
                "lies more than a day ahead of this machine's clock: one of the two is wrong", name
            )


@contextmanager
def _opened(source: str | os.PathLike[str] | IO[bytes]) -> Iterator[tuple[io.BufferedReader, datetime]]:
    """Give the file for reading, and when it was written."""
    if isinstance(source, (str, os.PathLike)):
        with disk_errors():
            file = Path(source).open("rb", buffering=reading.BUFFER)  # noqa: SIM115 (closed below)
        with file, reading.opened(file) as lines_of_it:
            yield lines_of_it, _written_at(file)
    else:
        with reading.opened(source) as lines_of_it:
            yield lines_of_it, _written_at(source)


def _written_at(file: IO[bytes]) -> datetime:
    try:
        return datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)
    except (OSError, AttributeError, ValueError):  # it is in memory, say
        return validation.utc_now()


def _items(file: io.BufferedReader, written_at: datetime, longest: int) -> Generator[Parcel | Problem, None, None]:
    """Give what an archive holds, or a file of the application's own, which has to be read whole to be told apart."""
    try:
        with disk_errors():
            head = file.peek(_HEAD).lstrip(_BLANK)
            if head.startswith(serialization.BEGINNING) or not head.startswith((b"{", b"[")):
                return reading.parcels(file, longest)
            start = file.tell() if file.seekable() else None
            whole = file.read(longest + 1)
    except ArchiveError as error:
        return _nothing(error.reason)
    if len(whole) <= longest:
        sessions = application.sessions_in(whole)
        if sessions is not None:
            return application.parcels(sessions, written_at)
        return reading.parcels(io.BufferedReader(io.BytesIO(whole)), longest)
    if start is None:
        return _nothing(f"this is no archive, and longer than {longest} bytes, as no file of the application's may be")
    with disk_errors():
        file.seek(start)
    return reading.parcels(file, longest)


def _nothing(reason: str) -> Generator[Parcel | Problem, None, None]:
    yield Problem(1, None, reason)
