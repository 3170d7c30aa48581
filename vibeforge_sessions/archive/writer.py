"""Writer of archives, for sessions that are deleted afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

from vibeforge_sessions.archive import reading, serialization, truncation
from vibeforge_sessions.archive.bundle import Bundle, Source, pack_record
from vibeforge_sessions.archive.files import (
    close_quietly,
    compressing,
    disk_errors,
    drop_page_cache,
    is_compressed,
    open_locked,
    sync,
    sync_folder,
)
from vibeforge_sessions.errors import ArchiveError
from vibeforge_sessions.model.history import ErrorEntry
from vibeforge_sessions.repository.aio import AsyncSessionRepository
from vibeforge_sessions.repository.serialization import Record

T = TypeVar("T")


class ArchiveWriter:
    """Appends sessions to an archive, so that they can be deleted afterwards.

    An added session is in the archive once `commit` has returned its record, and not before. By then it was written,
    flushed to the disk, read back, and compared with the session that was read from the store:

        with ArchiveWriter(path) as archive:
            for record in batch:
                archive.add(repository, record)
            for record in archive.commit():
                repository.delete_session(record.session_id, unchanged_since=record)

    Sessions are appended to an existing archive. First, truncation recovery removes the incomplete end that an
    interrupted run has left. A file that is not an archive, or whose end is damaged in another way, is rejected and
    stays unchanged. A link, a file of another user and a file that other users may write are rejected, too: another
    user may have prepared it. There is one writer at a time: a second one raises while the first is open.

    A session may be committed and then not deleted, because it was updated meanwhile. If it is added again later, the
    archive contains it twice. With ``on_conflict="newer"``, `import_sessions` stores its later state.

    :param path: the file. It is created if it is missing, readable by its owner only.
    :param compress: with gzip; by default if the name ends in ``.gz``. An existing archive keeps its format.
    :param longest_line: maximum length of a line in bytes. A session that needs a longer line is rejected.
    :raises ArchiveError: the file is not an archive, another process is writing it, another user may have prepared it,
        or it cannot be opened.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        compress: bool | None = None,
        longest_line: int = serialization.LONGEST_LINE,
    ) -> None:
        self._path = Path(path)
        self._longest = longest_line
        self._file = open_locked(self._path)
        try:
            with disk_errors():
                self._end = truncation.recover_truncated(self._file, longest_line)
                """Size of the file after the last commit."""
                self._compressed = truncation.is_gzip(self._file) if self._end else is_compressed(self._path, compress)
        except BaseException:
            close_quietly(self._file)
            raise
        self._out: IO[bytes] | None = None
        self._added: list[tuple[Record, str]] = []
        """Records and digests that were added since the last commit."""

    def add(self, repository: Source, record: Record) -> None:
        """Write one session with its histories, in the state of a record that `get_record` has returned.

        If any other error than `ArchiveError` is raised, nothing of this session is in the archive, and the sessions
        that were added before stay.

        :raises SessionNotFoundError: the session was deleted.
        :raises StaleSessionError: the session was updated since the record was read.
        :raises CorruptSessionError: the session violates the rules for sessions, or its histories do not match its
            record.
        :raises InvalidSessionError: the session needs a line that is too long.
        :raises ArchiveError: the disk is full or failed. Everything that was added since the last commit is removed.
        """
        with pack_record(repository, record, self._longest) as bundle:
            try:
                with disk_errors():
                    self._write(bundle)
            except BaseException:
                self._roll_back()
                raise
            self._added.append((record, bundle.digest))

    async def add_async(self, repository: AsyncSessionRepository[Any], record: Record) -> None:
        """Do the same for an asynchronous repository. The file is written in a thread."""
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(self.add, _BlockingRepository(repository, loop), record)

    def commit(self) -> list[Record]:
        """Flush the added sessions to the disk, read them back, compare them, and return their records.

        :raises ArchiveError: the disk is full or failed, or returned different data. Everything that was added since
            the last commit is removed.
        """
        if not self._added:
            return []
        try:
            with disk_errors():
                self._finish()
                sync(self._file)
                sync_folder(self._path.parent)
                self._verify()
                self._end = self._file.seek(0, io.SEEK_END)
        except BaseException:
            self._roll_back()
            raise
        records = [record for record, _ in self._added]
        self._added = []
        return records

    def close(self) -> None:
        """Close the file. Sessions that were added and not committed are removed."""
        if not self._file.closed:
            self._roll_back()
            close_quietly(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, bundle: Bundle) -> None:
        if self._out is None:
            self._file.seek(self._end)
            # one gzip member for each commit: an interruption leaves at most the last member incomplete
            self._out = compressing(self._file) if self._compressed else self._file
        for line in bundle.lines():
            self._out.write(line)

    def _finish(self) -> None:
        if self._out is not None and self._out is not self._file:
            self._out.close()
        self._out = None

    def _verify(self) -> None:
        drop_page_cache(self._file)
        with self._path.open("rb") as disk:
            disk.seek(self._end)
            with reading.opened(disk) as file:
                found = list(map(_identity, reading.read_bundles(file, self._longest)))
        if found != [(record.session_id, digest) for record, digest in self._added]:
            raise ArchiveError(
                "the disk returned other data than was written: do not delete these sessions, and check the disk"
            )

    def _roll_back(self) -> None:
        """Remove everything that was added since the last commit.

        If the disk fails, truncation recovery of the next writer removes it.
        """
        self._added = []
        out, self._out = self._out, None
        if out is not None and out is not self._file:
            close_quietly(out)
        with contextlib.suppress(OSError):
            self._file.truncate(self._end)


def _identity(item: Bundle | reading.Problem) -> tuple[str | None, str]:
    if isinstance(item, reading.Problem):
        return item.session_id, item.reason
    with item:
        return item.record.session_id, item.digest


class _BlockingRepository:
    """An asynchronous repository with synchronous methods, for a thread beside its event loop."""

    def __init__(self, repository: AsyncSessionRepository[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._repository = repository
        self._loop = loop

    def get_record(self, session_id: str) -> Record | None:
        return self._wait(self._repository.get_record(session_id))

    def list_errors(self, session_id: str, *, after: int, limit: int) -> list[ErrorEntry]:
        return self._wait(self._repository.list_errors(session_id, after=after, limit=limit))

    def list_logs(self, session_id: str, *, after: int, limit: int) -> list[str]:
        return self._wait(self._repository.list_logs(session_id, after=after, limit=limit))

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()
