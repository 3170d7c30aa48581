"""Export of sessions from a repository to a file."""

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
    InvalidArgumentError,
    InvalidSessionError,
    StaleSessionError,
)
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.query import SessionFilter

# an id that was changed by hand is an InvalidArgumentError
_PER_SESSION = (CorruptSessionError, InvalidArgumentError, InvalidSessionError, StaleSessionError)
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
    """Write sessions to a file, oldest first, each in one consistent state, while the store is in use.

    The file gets its name once it is complete. Until then it is called ``….part``. An interrupted export leaves this
    file behind, and the next export removes it. The file is created new, readable by its owner only. A ``….part``
    that is a link, belongs to another user or may be written by other users is rejected: another user may have
    prepared it. An export, its import and another export give equal bytes.

    A session that is deleted before it is read is ``gone``. A session is ``failed`` if it is updated so often that no
    consistent state can be read, or if it violates the rules for sessions. Both are left out, and the others are
    exported.

    :param target: a path, or a binary file that is open for writing, which stays open.
    :param filter: selects sessions; all by default.
    :param compress: with gzip; by default if the path ends in ``.gz``.
    :param overwrite: replace an existing file.
    :param stop_on_error: raise the first problem instead of leaving the session out. Then no file is written.
    :param longest_line: maximum length of a line in bytes. A session that needs a longer line is ``failed``.
    :raises ArchiveError: the file exists, or cannot be written; another process is writing it, or another user may
        have prepared its ``….part``.
    """
    report = Report()
    with _open_target(target, compress=compress, overwrite=overwrite) as file:
        _write(file, serialization.archive_line())
        for session_id in session_ids(repository, filter):
            try:
                result = _export(repository, session_id, file, longest_line)
            except _PER_SESSION as error:
                if stop_on_error:
                    raise
                result = Result("failed", session_id, reason=str(error))
            report.add(result, on_session)
        _write(file, serialization.archive_end_line(report.exported))
    return report


def session_ids(repository: SessionRepository[Any], asked: SessionFilter | None) -> Iterator[str]:
    """Yield the ids of sessions, oldest first. They are read in pages."""
    cursor: str | None = None
    while True:
        page = repository.find_sessions(asked, order="created_at", limit=_PAGE, cursor=cursor)
        for item in page.items:
            yield item.session_id
        cursor = page.next_cursor
        if cursor is None:
            return


def _export(repository: SessionRepository[Any], session_id: str, file: IO[bytes], longest: int) -> Result:
    bundle = pack(repository, session_id, longest)
    if bundle is None:
        return Result("gone", session_id)
    with bundle:
        for line in bundle.lines():
            _write(file, line)
        return Result("exported", session_id, *bundle.record.counts)


def _write(file: IO[bytes], line: bytes) -> None:
    with disk_errors():
        file.write(line)


@contextmanager
def _open_target(
    target: str | os.PathLike[str] | IO[bytes], *, compress: bool | None, overwrite: bool
) -> Iterator[IO[bytes]]:
    if not isinstance(target, (str, os.PathLike)):
        with _optionally_compressed(target, compress=bool(compress)) as file:
            yield file
        with disk_errors():
            target.flush()
        return
    path = Path(target)
    part = path.with_name(f"{path.name}.part")
    _check_target(path, overwrite=overwrite)
    out = create_locked(part)
    try:
        with _optionally_compressed(out, compress=is_compressed(path, compress)) as file:
            yield file
        _check_target(path, overwrite=overwrite)
        with disk_errors():
            sync(out)
            part.replace(path)
            sync_folder(path.parent)
    finally:
        close_quietly(out)  # already synced, or discarded


@contextmanager
def _optionally_compressed(out: IO[bytes], *, compress: bool) -> Iterator[IO[bytes]]:
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


def _check_target(path: Path, *, overwrite: bool) -> None:
    with disk_errors():
        is_taken = path.exists() and not overwrite
    if is_taken:
        raise ArchiveError("a file of this name exists already: choose another name, or allow overwriting")
