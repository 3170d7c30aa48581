"""Files on a disk that can be full, and of which one process at a time writes one."""

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
"""What each gzip begins with."""
_LEVEL: Final = 6
_GZIP_ONLY: Final = zlib.MAX_WBITS | 16
_PIECE: Final = 64 * 1024
_READ_AND_WRITE: Final = (
    os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
)
"""O_NONBLOCK: opening a named pipe does not wait; it means nothing for a regular file."""
_LOCKED: Final = "another process is writing this file"
_NOT_APPENDED_TO: Final = (
    "nothing can be appended to this file: it {}; name a new file, or a regular file of this user that no other user "
    "may write"
)
_NOT_REMOVED: Final = (
    "the unfinished export beside this file (the same name with .part) {}: another user may have prepared it; "
    "remove it, or export into a folder that no other user may write"
)
_DAMAGED: Final = "the gzip is damaged or ends early: nothing behind this can be read"


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Raise what a disk or an operating system refuses as an error of ours, which shows no path."""
    try:
        yield
    except OSError as error:
        raise ArchiveError(f"a file cannot be read or written: {os.strerror(error.errno or 0)}") from error


def is_compressed(path: Path, compress: bool | None) -> bool:  # noqa: FBT001 (an option that is handed on)
    """Tell whether a new file is to be a gzip: as asked for, or else by its name."""
    return path.suffix == ".gz" if compress is None else compress


def compressing(file: IO[bytes] | Unbuffered) -> IO[bytes]:
    """Return a gzip that is written to a file, the same bytes at every time; closing it leaves the file open."""
    return cast(
        "IO[bytes]",
        gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=file, mtime=0),
    )


class Decompressing(io.RawIOBase):
    """What a gzip holds, or several one behind the other; all of it that can be read comes before the error.

    (`gzip.GzipFile` forgets up to a buffer of what stands before the place where a file was cut off.)
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._stream = zlib.decompressobj(_GZIP_ONLY)
        self._input = b""
        self._between = True
        """Whether the next byte begins a gzip."""

    def readable(self) -> bool:
        """Say that it is for reading."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Read some bytes.

        :raises ArchiveError: the gzip is damaged or ends early.
        """
        view = memoryview(buffer).cast("B")
        while len(view):
            if self._stream.eof:
                self._input, self._between = self._stream.unused_data, True
                self._stream = zlib.decompressobj(_GZIP_ONLY)
            ended = not self._input and not self._fill()
            if self._between:
                self._input = self._input.lstrip(b"\0")  # some tools pad with zeros
                if ended:
                    break
                if not self._input:
                    continue
            try:
                data = self._stream.decompress(self._input, len(view))
            except zlib.error:
                raise ArchiveError(_DAMAGED) from None
            self._input, self._between = self._stream.unconsumed_tail, False
            if data:
                view[: len(data)] = data
                return len(data)
            if ended and not self._stream.eof:
                raise ArchiveError(_DAMAGED)
        return 0

    def _fill(self) -> bool:
        self._input = self._file.read(_PIECE)
        return bool(self._input)


class Unbuffered(io.FileIO):
    """A file that writes all it is given, or raises; nothing is left to be written when it is cut off, or closed."""

    def write(self, data: Buffer, /) -> int:
        """Write all of it; `io.FileIO` may write less where a disk becomes full."""
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view):
            written += super().write(view[written:])
        return written


def open_locked(path: Path) -> Unbuffered:
    """Open a file for reading and writing, and lock it against other processes; create it if it is missing.

    :raises ArchiveError: another process has locked the file, another user may have prepared it, or it cannot be
        opened.
    """
    file = _created(path)
    return _opened(path, _NOT_APPENDED_TO) if file is None else file


def create_locked(path: Path) -> Unbuffered:
    """Create a file and lock it against other processes; an unlocked leftover of this user is removed first.

    :raises ArchiveError: another process has locked the leftover, another user may have prepared it, or no file can
        be created.
    """
    file = _created(path)
    if file is not None:
        return file
    leftover = _opened(path, _NOT_REMOVED)
    try:
        with disk_errors():
            path.unlink()
        file = _created(path)
    finally:
        close_quietly(leftover)  # it stays locked until the new file is locked
    if file is None:
        raise ArchiveError(_LOCKED)
    return file


def _created(path: Path) -> Unbuffered | None:
    """Create and lock a file that only its owner may read; None if there is a file, or a link, of this name."""
    with disk_errors():
        try:
            descriptor = os.open(path, _READ_AND_WRITE | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return None
    return _locked(descriptor, path)


def _opened(path: Path, rejection: str) -> Unbuffered:
    """Open and lock a file that is there; raise the rejection if another user may have prepared it."""
    with disk_errors():
        if path.is_symlink():  # O_NOFOLLOW rejects a link that is made later, with a less helpful message
            raise ArchiveError(rejection.format("is a symbolic link"))
        try:
            descriptor = os.open(path, _READ_AND_WRITE)
        except FileNotFoundError as error:  # another process has renamed it since it was found
            raise ArchiveError(_LOCKED) from error
    suspicion = _suspicion(os.fstat(descriptor))
    if suspicion is not None:
        os.close(descriptor)
        raise ArchiveError(rejection.format(suspicion))
    return _locked(descriptor, path)


def _suspicion(opened: os.stat_result) -> str | None:
    """Return what shows that another user may have prepared an open file, or may write it."""
    if not stat.S_ISREG(opened.st_mode):
        return "is not a regular file"
    if opened.st_nlink > 1:
        return "has a second name (a hard link)"
    if sys.platform == "win32":  # it has neither owners nor modes like these
        return None
    if opened.st_uid != os.geteuid():
        return "belongs to another user"
    if opened.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "is one that other users may write"
    return None


def _locked(descriptor: int, path: Path) -> Unbuffered:
    file = Unbuffered(descriptor, "r+b")
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(path.lstat(), os.fstat(descriptor)):  # it was renamed before it was locked
            raise FileNotFoundError
    except OSError as error:
        file.close()
        raise ArchiveError(_LOCKED) from error
    return file


def close_quietly(file: IO[bytes] | Unbuffered) -> None:
    """Close a file that something has gone wrong with already."""
    with contextlib.suppress(OSError, ValueError):
        file.close()


def sync(file: Unbuffered) -> None:
    """Have what was written on the disk before anybody goes on."""
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have a new name in a folder on the disk, where the system can do that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def forget_cached(file: Unbuffered) -> None:
    """Have what was synced read from the disk again, where the system can do that."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
