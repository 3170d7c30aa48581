"""`ArchiveWriter`: sessions are appended to a file, and read back from the disk, before anybody deletes them."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from vibeforge_sessions.aio import AsyncSessionRepository
from vibeforge_sessions.codec import Record
from vibeforge_sessions.repository import SessionRepository


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
    whole session is cut off first; a file that is no archive, or one that is damaged elsewhere, is refused and stays
    as it is. One writer at a time: a second one is refused while the first is open.

    :param path: the file; it is made if it is missing, readable by its owner only.
    :param compress: as gzip; by default if the name ends in ``.gz``. Of an archive that is there, what it is already.
    :raises ArchiveError: the file is no archive, is written by somebody else, or cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], *, compress: bool | None = None) -> None:
        raise NotImplementedError

    def add(self, repository: SessionRepository, record: Record) -> None:
        """Write one session with its histories, as it was when `get_record` returned this record.

        If it raises, nothing of this session is in the archive, and the writer can be used on; after an `ArchiveError`
        because the disk failed, the next `commit` raises too.

        :raises SessionNotFoundError: the session is gone.
        :raises StaleSessionError: somebody has stored it since, so that nobody could tell what belongs to the record.
        :raises CorruptSessionError: it holds what no archive keeps, or its histories are not what its record says.
        :raises ArchiveError: the disk is full, or fails otherwise.
        """
        raise NotImplementedError

    async def add_async(self, repository: AsyncSessionRepository, record: Record) -> None:
        """Do the same for a repository of asyncio; the file is written in a thread."""
        raise NotImplementedError

    def commit(self) -> list[Record]:
        """Sync what was added since the last commit, read it back, compare it; return the records that were added.

        :raises ArchiveError: the disk is full or fails, or gives back something else. What was added since the last
            commit is not in the archive then.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close the file. What was added and not committed is cut off."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
