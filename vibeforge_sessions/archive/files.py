"""File access: errors of the disk, gzip, locks, and checks of existing files."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, cast

from vibeforge_sessions.errors import ArchiveError

if TYPE_CHECKING:
    from typing_extensions import Buffer

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

GZIP: Final = b"\x1f\x8b"
"""First bytes of every gzip file."""
_COMPRESSION_LEVEL: Final = 6
_GZIP_FORMAT: Final = zlib.MAX_WBITS | 16
_READ_SIZE: Final = 64 * 1024
_READ_AND_WRITE: Final = (
    os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
)
"""With O_NONBLOCK, opening a named pipe does not wait. It has no effect on a regular file."""
_LOCKED: Final = "another process is writing this file: wait until it ends, or name another file"
_CANNOT_APPEND: Final = (
    "nothing can be appended to this file: it {}; name a new file, or a regular file of this user that no other user "
    "may write"
)
_CANNOT_REMOVE: Final = (
    "the unfinished export beside this file (the same name with .part) {}: another user may have prepared it; "
    "remove it, or export into a folder that no other user may write"
)
_DAMAGED: Final = "the gzip is damaged or ends early: the rest of the file cannot be read"


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Translate errors of the operating system to `ArchiveError`, which shows no path."""
    try:
        yield
    except OSError as error:
        raise ArchiveError(f"a file cannot be read or written: {os.strerror(error.errno or 0)}") from error


def is_compressed(path: Path, compress: bool | None) -> bool:  # noqa: FBT001 (an option that is handed on)
    """Return whether a new file is compressed: as the caller asks, or else by its name."""
    return path.suffix == ".gz" if compress is None else compress


def compressing(file: IO[bytes] | Unbuffered) -> IO[bytes]:
    """Return a file that compresses into another file, which stays open. Equal data gives equal bytes."""
    return cast(
        "IO[bytes]",
        gzip.GzipFile(filename="", mode="wb", compresslevel=_COMPRESSION_LEVEL, fileobj=file, mtime=0),
    )


class Decompressing(io.RawIOBase):
    """Decompressed content of a file of one or more gzip members.

    In a damaged file, all readable data is returned before the error is raised. `gzip.GzipFile` would lose up to one
    buffer of it.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._stream = zlib.decompressobj(_GZIP_FORMAT)
        self._input = b""
        self._between_members = True
        """Whether the next byte begins a gzip member."""

    def readable(self) -> bool:
        """Return True: the file is open for reading."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Read some bytes.

        :raises ArchiveError: the gzip is damaged or ends early.
        """
        view = memoryview(buffer).cast("B")
        while len(view):
            if self._stream.eof:
                self._input, self._between_members = self._stream.unused_data, True
                self._stream = zlib.decompressobj(_GZIP_FORMAT)
            ended = not self._input and not self._fill()
            if self._between_members:
                self._input = self._input.lstrip(b"\0")  # some tools pad with zeros
                if ended:
                    break
                if not self._input:
                    continue
            try:
                data = self._stream.decompress(self._input, len(view))
            except zlib.error:
                raise ArchiveError(_DAMAGED) from None
            self._input, self._between_members = self._stream.unconsumed_tail, False
            if data:
                view[: len(data)] = data
                return len(data)
            if ended and not self._stream.eof:
                raise ArchiveError(_DAMAGED)
        return 0

    def _fill(self) -> bool:
        self._input = self._file.read(_READ_SIZE)
        return bool(self._input)


class Unbuffered(io.FileIO):
    """Unbuffered file whose `write` writes all bytes or raises. Truncating and closing it writes nothing."""

    def write(self, data: Buffer, /) -> int:
        """Write all bytes. `io.FileIO` may write fewer when the disk becomes full."""
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view):
            written += super().write(view[written:])
        return written


def open_locked(path: Path) -> Unbuffered:
    """Open or create a file for reading and writing, and lock it against other processes.

    :raises ArchiveError: another process has locked the file, another user may have prepared it, or it cannot be
        opened.
    """
    file = _create_locked(path)
    return _open_existing(path, _CANNOT_APPEND) if file is None else file


def create_locked(path: Path) -> Unbuffered:
    """Create a file and lock it against other processes. An unlocked leftover of this user is removed first.

    :raises ArchiveError: another process has locked the leftover, another user may have prepared it, or no file can
        be created.
    """
    file = _create_locked(path)
    if file is not None:
        return file
    leftover = _open_existing(path, _CANNOT_REMOVE)
    try:
        with disk_errors():
            path.unlink()
        file = _create_locked(path)
    finally:
        close_quietly(leftover)  # the leftover stays locked until the new file is locked
    if file is None:
        raise ArchiveError(_LOCKED)
    return file


def _create_locked(path: Path) -> Unbuffered | None:
    """Create and lock a file that only its owner may read. Return None if a file or a link of this name exists."""
    with disk_errors():
        try:
            descriptor = os.open(path, _READ_AND_WRITE | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return None
    return _lock(descriptor, path)


def _open_existing(path: Path, rejection: str) -> Unbuffered:
    """Open and lock an existing file.

    :param rejection: the message of the error that is raised if another user may have prepared the file.
    """
    with disk_errors():
        # O_NOFOLLOW rejects a link that is created after this check, with a less helpful message
        if path.is_symlink():
            raise ArchiveError(rejection.format("is a symbolic link"))
        try:
            descriptor = os.open(path, _READ_AND_WRITE)
        except FileNotFoundError as error:  # another process has renamed the file since
            raise ArchiveError(_LOCKED) from error
    unsafe = _unsafe_property(os.fstat(descriptor))
    if unsafe is not None:
        os.close(descriptor)
        raise ArchiveError(rejection.format(unsafe))
    return _lock(descriptor, path)


def _unsafe_property(opened: os.stat_result) -> str | None:
    """Return the property by which another user may have prepared an open file, or may write it; None without one."""
    if not stat.S_ISREG(opened.st_mode):
        return "is not a regular file"
    if opened.st_nlink > 1:
        return "has a second name (a hard link)"
    if sys.platform == "win32":  # Windows has no such owners and modes
        return None
    if opened.st_uid != os.geteuid():
        return "belongs to another user"
    if opened.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "is one that other users may write"
    return None


def _lock(descriptor: int, path: Path) -> Unbuffered:
    file = Unbuffered(descriptor, "r+b")
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(path.lstat(), os.fstat(descriptor)):  # the file was renamed before it was locked
            raise FileNotFoundError
    except OSError as error:
        file.close()
        raise ArchiveError(_LOCKED) from error
    return file


def close_quietly(file: IO[bytes] | Unbuffered) -> None:
    """Close a file without raising errors: another error was raised before, or the content is not needed."""
    with contextlib.suppress(OSError, ValueError):
        file.close()


def sync(file: Unbuffered) -> None:
    """Flush the written data to the disk."""
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to the disk, if the operating system supports this."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop_page_cache(file: Unbuffered) -> None:
    """Drop the cached pages of a file, if the operating system supports this, so that they are read from the disk."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
