"""`export_sessions`: from a repository to a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from vibeforge_sessions.archive import serialization
from vibeforge_sessions.archive.bundle import pack
from vibeforge_sessions.archive.files import (
    close_quietly,
    compressing,
    create_locked,
    disk_errors,
    is_compressed,
    sync,
    sync_folder,
)
from vibeforge_sessions.archive.report import OnSession, Report, Result
from vibeforge_sessions.errors import (
    ArchiveError,
    CorruptSessionError,
    InvalidSessionError,
    StaleSessionError,
)
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.query import SessionFilter

_PER_SESSION = (CorruptSessionError, InvalidSessionError, StaleSessionError)
_PAGE = 500


def export_sessions(
    repository: SessionRepository[Any],
    target: str | os.PathLike[str] | IO[bytes],
    filter: SessionFilter | None = None,  # noqa: A002 (the contract's name)
    *,
    compress: bool | None = None,
    overwrite: bool = False,
    stop_on_error: bool = False,
    on_session: OnSession | None = None,
    longest_line: int = serialization.LONGEST_LINE,
) -> Report:
    """Write sessions to a file, oldest first, each as of one moment, while the store is in use.

    The file has its name when it is whole: until then it is ``….part``, which an interrupted export leaves behind, and
    which the next one removes to begin anew. It is created new, readable by its owner only. A ``….part`` that is a
    link, belongs to another user or may be written by other users is rejected: another user may have prepared it.
    What is exported, imported and exported again is the same, byte for byte.

    A session that is deleted before it is read is ``gone``; one that is stored so often that no moment of it can be
    read, or that holds what no repository keeps, has ``failed``. Both are left out, and the others are exported.

    :param target: a path, or a file that is open for writing bytes, which is left open.
    :param filter: which sessions; all by default.
    :param compress: as gzip; by default if the path ends in ``.gz``.
    :param overwrite: take the place of a file that is there.
    :param stop_on_error: raise what is wrong with a session instead of leaving it out; there is no file then.
    :param longest_line: how many bytes a line may have; a session that needs more has failed.
    :raises ArchiveError: the file is there, or cannot be written; another process is writing it, or another user may
        have prepared its ``….part``.
    """
    report = Report()
    with _written(target, compress=compress, overwrite=overwrite) as file:
        _put(file, serialization.archive_line())
        for session_id in session_ids(repository, filter):
            try:
                result = _export(repository, session_id, file, longest_line)
            except _PER_SESSION as error:
                if stop_on_error:
                    raise
                result = Result("failed", session_id, reason=str(error))
            report.add(result, on_session)
        _put(file, serialization.archive_end_line(report.exported))
    return report


def session_ids(repository: SessionRepository[Any], asked: SessionFilter | None) -> Iterator[str]:
    """Give the ids of sessions, oldest first, a page at a time."""
    cursor: str | None = None
    while True:
        page = repository.find_sessions(asked, order="created_at", limit=_PAGE, cursor=cursor)
        for item in page.items:
            yield item.session_id
        cursor = page.next_cursor
        if cursor is None:
            return


def _export(repository: SessionRepository[Any], session_id: str, file: IO[bytes], longest: int) -> Result:
    parcel = pack(repository, session_id, longest)
    if parcel is None:
        return Result("gone", session_id)
    with parcel:
        for line in parcel.lines():
            _put(file, line)
        return Result("exported", session_id, *parcel.record.counts)


def _put(file: IO[bytes], line: bytes) -> None:
    with disk_errors():
        file.write(line)


@contextmanager
def _written(
    target: str | os.PathLike[str] | IO[bytes], *, compress: bool | None, overwrite: bool
) -> Iterator[IO[bytes]]:
    if not isinstance(target, (str, os.PathLike)):
        with _perhaps_compressed(target, compress=bool(compress)) as file:
            yield file
        with disk_errors():
            target.flush()
        return
    path = Path(target)
    part = path.with_name(f"{path.name}.part")
    _check_free(path, overwrite=overwrite)
    out = create_locked(part)
    try:
        with _perhaps_compressed(out, compress=is_compressed(path, compress)) as file:
            yield file
        _check_free(path, overwrite=overwrite)
        with disk_errors():
            sync(out)
            part.replace(path)
            sync_folder(path.parent)
    finally:
        close_quietly(out)  # it is synced, or of no use


@contextmanager
def _perhaps_compressed(out: IO[bytes], *, compress: bool) -> Iterator[IO[bytes]]:
    if not compress:
        yield out
        return
    file = compressing(out)
    try:
        yield file
        with disk_errors():
            file.close()
    finally:
        close_quietly(file)


def _check_free(path: Path, *, overwrite: bool) -> None:
    with disk_errors():
        taken = path.exists() and not overwrite
    if taken:
        raise ArchiveError("there is a file of this name already: choose another, or ask for it to be overwritten")
