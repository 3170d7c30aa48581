"""`ArchiveWriter`: sessions are appended to a file, and read back from the disk, before anybody deletes them."""

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
from vibeforge_sessions.archive.bundle import Parcel, Source, pack_record
from vibeforge_sessions.archive.files import (
    close_quietly,
    compressing,
    disk_errors,
    forget_cached,
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

    What is added is in the archive once `commit` has returned it, and not before: it has been written and synced then,
    read back from the disk, and found to be what was read from the store::

        with ArchiveWriter(path) as archive:
            for record in batch:
                archive.add(repository, record)
            for record in archive.commit():
                repository.delete_session(record.session_id, unchanged_since=record)

    An archive that is there already is appended to. What an interrupted run has left half written behind the last
    whole session is cut off first; a file that is no archive, or whose end is damaged otherwise, is refused and stays
    as it is. So is a link, a file of another user, and a file that other users may write: another user may have
    prepared it. One writer at a time: a second one is refused while the first is open.

    A session that is added, committed, and then not deleted since somebody has touched it may be added again later:
    it is in the archive twice then. `import_sessions` takes the later state of it with ``on_conflict="newer"``.

    :param path: the file; it is made if it is missing, readable by its owner only.
    :param compress: as gzip; by default if the name ends in ``.gz``. An archive that is there stays what it is.
    :param longest_line: how many bytes a line may have; a session that needs more is refused.
    :raises ArchiveError: the file is no archive, is written by somebody else, may have been prepared by another user,
        or cannot be opened.
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
                self._end = truncation.cut_off(self._file, longest_line)
                """Where the last commit ends."""
                self._compressed = truncation.is_gzip(self._file) if self._end else is_compressed(self._path, compress)
        except BaseException:
            close_quietly(self._file)
            raise
        self._out: IO[bytes] | None = None
        self._added: list[tuple[Record, str]] = []
        """What was added since the last commit, with the digests."""

    def add(self, repository: Source, record: Record) -> None:
        """Write one session with its histories, as it was when `get_record` returned this record.

        If it raises anything but `ArchiveError`, nothing of this session is in the archive, and all else stays.

        :raises SessionNotFoundError: the session is gone.
        :raises StaleSessionError: somebody has stored it since, so that nobody could tell what belongs to the record.
        :raises CorruptSessionError: it holds what no repository keeps, or its histories are not what its record says.
        :raises InvalidSessionError: it makes a line that is too long.
        :raises ArchiveError: the disk is full, or fails otherwise; what was added since the last commit is cut off.
        """
        with pack_record(repository, record, self._longest) as parcel:
            try:
                with disk_errors():
                    self._write(parcel)
            except BaseException:
                self._roll_back()
                raise
            self._added.append((record, parcel.digest))

    async def add_async(self, repository: AsyncSessionRepository[Any], record: Record) -> None:
        """Do the same for a repository of asyncio; the file is written in a thread."""
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(self.add, _OnLoop(repository, loop), record)

    def commit(self) -> list[Record]:
        """Sync what was added since the last commit, read it back, compare it; return the records that were added.

        :raises ArchiveError: the disk is full or fails, or gives back something else. What was added since the last
            commit is cut off then.
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
        """Close the file. What was added and not committed is cut off."""
        if not self._file.closed:
            self._roll_back()
            close_quietly(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, parcel: Parcel) -> None:
        if self._out is None:
            self._file.seek(self._end)
            # a gzip for each commit: a file of several is one, too, and what is torn is at most the last
            self._out = compressing(self._file) if self._compressed else self._file
        for line in parcel.lines():
            self._out.write(line)

    def _finish(self) -> None:
        if self._out is not None and self._out is not self._file:
            self._out.close()
        self._out = None

    def _verify(self) -> None:
        forget_cached(self._file)
        with self._path.open("rb") as disk:
            disk.seek(self._end)
            with reading.opened(disk) as file:
                found = list(map(_identity, reading.parcels(file, self._longest)))
        if found != [(record.session_id, digest) for record, digest in self._added]:
            raise ArchiveError("the disk does not give back what was written: nothing of it may be deleted")

    def _roll_back(self) -> None:
        """Cut off what was added since the last commit, if the disk lets us; the next writer does it otherwise."""
        self._added = []
        out, self._out = self._out, None
        if out is not None and out is not self._file:
            close_quietly(out)
        with contextlib.suppress(OSError):
            self._file.truncate(self._end)


def _identity(item: Parcel | reading.Problem) -> tuple[str | None, str]:
    if isinstance(item, reading.Problem):
        return item.session_id, item.reason
    with item:
        return item.record.session_id, item.digest


class _OnLoop:
    """A repository of asyncio, for a thread beside its event loop."""

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
