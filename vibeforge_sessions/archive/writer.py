"""Writer of archives, for sessions that are deleted afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import mmap
import os
import zlib
from pathlib import Path
from typing import IO, Any, Final, Self, cast

from vibeforge_sessions.archive import files, serialization
from vibeforge_sessions.archive.bundle import pack_record
from vibeforge_sessions.archive.reading import GZIP, lines_of, opened
from vibeforge_sessions.archive.serialization import BEGINNING, DamagedLineError
from vibeforge_sessions.errors import ArchiveError
from vibeforge_sessions.repository.aio import AsyncSessionRepository, BlockingRepository
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.serialization import Record

_CLOSING_KINDS: Final = {"end", "archive_end"}
_KINDS: Final = {"archive", "session", serialization.ERRORS, serialization.LOGS, *_CLOSING_KINDS}
_READ_SIZE: Final = 64 * 1024
_MEMBER_HEADER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
"""First bytes of each gzip member that `compressing` writes; they contain neither a name nor a time."""


class ArchiveWriter:
    """Appends sessions to an archive, so that they can be deleted afterwards.

    An added session is in the archive once `commit` has returned its record, and not before. By then it has been
    written, flushed to the disk, read back, and compared with the session that was read from the store:

        with ArchiveWriter(path) as archive:
            for record in batch:
                archive.add(repository, record)
            for record in archive.commit():
                repository.delete_session(record.session_id, unchanged_since=record)

    Sessions are appended to an existing archive. First, truncation recovery removes the incomplete end that an
    interrupted run has left. A file that is not an archive, or whose end is damaged in another way, is rejected and
    stays unchanged. A link, a file of another user, and a file that other users can write to are rejected, too, because
    another user may have prepared them. Creating a second writer for a file raises while the first one is open.

    A session may be committed and then not deleted, because it was updated meanwhile. If it is added again later, the
    archive contains it twice. With ``on_conflict="newer"``, `import_sessions` stores its later state.

    :param path: the file. It is created if it is missing, readable by its owner only.
    :param compress: whether to use gzip; by default if the name ends in ``.gz``. An existing archive keeps its format.
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
        self._file = files.open_locked(self._path)
        try:
            with files.disk_errors():
                self.size = _recover(self._file, longest_line)
                """Size of the file in bytes after the last commit."""
                self._compresses = _is_gzip(self._file) if self.size else files.is_compressed(self._path, compress)
        except BaseException:
            self._file.close()
            raise
        self._open_files = contextlib.ExitStack()
        self._reset()

    def add(self, repository: SessionRepository[Any], record: Record) -> None:
        """Write one session with its histories, in the state of a record that `get_record` has returned.

        If an error other than `ArchiveError` is raised, the archive contains no part of this session, and keeps the
        sessions that were added before.

        :raises SessionNotFoundError: the session was deleted.
        :raises StaleSessionError: the session has been updated since the record was read.
        :raises CorruptSessionError: the session violates the rules for sessions, or its histories do not match its
            record.
        :raises InvalidSessionError: the session needs a line that is too long.
        :raises ArchiveError: the disk is full or failed. Everything that was added since the last commit is removed.
        """
        with pack_record(repository, record, self._longest) as bundle:
            try:
                with files.disk_errors():
                    for line in bundle.lines():
                        self._output().write(line)
                        self._hash.update(line)
            except BaseException:
                self._reset()
                raise
            self._added.append(record)

    async def add_async(self, repository: AsyncSessionRepository[Any], record: Record) -> None:
        """Do what `add` does, for an asynchronous repository. A thread writes the file."""
        await asyncio.to_thread(self.add, cast("SessionRepository[Any]", BlockingRepository(repository)), record)

    def commit(self) -> list[Record]:
        """Flush the added sessions to the disk, read them back, compare them, and return their records.

        :raises ArchiveError: the disk is full or failed, or returned different data. Everything that was added since
            the last commit is removed.
        """
        if not self._added:
            return []
        try:
            with files.disk_errors():
                self._open_files.close()
                os.fsync(self._file.fileno())
                files.sync_folder(self._path.parent)
                self._verify()
                self.size = self._file.seek(0, io.SEEK_END)
        except BaseException:
            self._reset()
            raise
        added = self._added
        self._reset()
        return added

    def close(self) -> None:
        """Close the file. Sessions that were added and not committed are removed."""
        if not self._file.closed:
            self._reset()
            with contextlib.suppress(OSError):
                self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reset(self) -> None:
        """Remove everything that was added since the last commit.

        If the disk fails, the next writer removes the rest (truncation recovery).
        """
        self._added: list[Record] = []
        self._hash = hashlib.sha256()
        """Checksum of all added lines."""
        self._out: IO[bytes] | None = None
        with contextlib.suppress(OSError):
            self._open_files.close()
        with contextlib.suppress(OSError):
            self._file.truncate(self.size)

    def _output(self) -> IO[bytes]:
        """Return the file to write to.

        Each commit writes one gzip member, so that an interruption leaves at most the last member incomplete.
        """
        if self._out is None:
            self._file.seek(self.size)
            out = self._open_files.enter_context(os.fdopen(self._file.fileno(), "wb", closefd=False))
            self._out = self._open_files.enter_context(files.compressing(out)) if self._compresses else out
        return self._out

    def _verify(self) -> None:
        files.drop_page_cache(self._file)
        with self._path.open("rb", buffering=0) as disk:
            disk.seek(self.size)
            with opened(disk) as file:
                stored = hashlib.file_digest(file, "sha256")
        if stored.digest() != self._hash.digest():
            raise ArchiveError(
                "the data on the disk differs from the written data: do not delete these sessions, and check the disk"
            )


# --- truncation recovery: removal of the incomplete end that an interrupted writer has left ---


def _is_gzip(file: io.FileIO) -> bool:
    """Return whether a file is compressed."""
    file.seek(0)
    return file.read(len(GZIP)) == GZIP


def _recover(file: io.FileIO, longest: int) -> int:
    """Remove an incomplete end after the last complete session; return the new size of the file.

    :param longest: maximum length of a line in bytes.
    :raises ArchiveError: the file is not an archive, or is damaged.
    """
    try:
        end = _end_of_members(file) if _is_gzip(file) else _end_of_lines(file, longest)
    except (DamagedLineError, zlib.error):
        raise ArchiveError(
            "nothing can be appended to this file: it is damaged, or not an archive; name a new file"
        ) from None
    file.truncate(end)
    return end


def _end_of_lines(file: io.FileIO, longest: int) -> int:
    """Return the offset after the last closing line. If only the newline of this line is missing, write it."""
    end = offset = 0
    file.seek(0)
    with opened(file) as lines:
        for line in lines_of(lines, longest):
            if line is None:
                raise DamagedLineError(f"is longer than {longest} bytes: increase longest_line")
            offset += len(line)
            try:
                kind = serialization.parse(line)["kind"]
            except DamagedLineError:
                is_cut_off = not line.endswith(b"\n") and BEGINNING.startswith(line[: len(BEGINNING)])
                if is_cut_off or line.isspace():
                    continue
                raise
            if kind not in _KINDS:
                raise DamagedLineError("is not a line of an archive")
            if kind in _CLOSING_KINDS:
                end = offset
    file.seek(max(0, end - 1))
    if end and file.read(1) != b"\n":
        end += file.write(b"\n")
    return end


def _end_of_members(file: io.FileIO) -> int:
    """Return the offset after the last complete gzip member."""
    end, block = 0, b""
    file.seek(0)
    while True:
        member, beginning = zlib.decompressobj(zlib.MAX_WBITS | 16), b""
        while not member.eof and (block := block or file.read(_READ_SIZE)):
            beginning += member.decompress(block)[: len(BEGINNING) - len(beginning)]
            block = member.unused_data
        if not BEGINNING.startswith(beginning):
            raise DamagedLineError("is not a line of an archive")
        if not member.eof:
            break
        end = file.tell() - len(block)
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # an interrupted writer leaves an incomplete member only at the end; one elsewhere means a damaged file
        if content.find(_MEMBER_HEADER, end + 1) != -1:
            raise DamagedLineError("an incomplete gzip member must be the last one of the file")
    return end
